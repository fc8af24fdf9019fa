"""Which TPU compiler is installed, which one JAX asks for, and what one compiled, as text."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import jax

from spectran_jax.errors import InputError, first_line


def versions() -> dict[str, str]:
    """Of JAX and libtpu, "" where it is not installed: what compiled a plan, as another version may plan otherwise."""
    found = {}
    for name in ("jax", "libtpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def asked_for() -> str:
    """The libtpu that the installed JAX was released with, as pip writes it (libtpu==0.0.42.*), "" where unknown."""
    asked = (each.split(";")[0].strip() for each in metadata.requires("jax") or ())
    return next((each for each in asked if each.startswith("libtpu")), "")


def mismatch() -> str:
    """A sentence, where the libtpu that is installed is not known to be the one that JAX asks for; "" where it is."""
    found, asked = versions(), asked_for()
    release = asked.rpartition("==")[2].removesuffix("*").removesuffix(".")
    if found["libtpu"] and release and f"{found['libtpu']}.".startswith(f"{release}."):
        return ""
    wanted = f"JAX {found['jax']} asks for {asked}" if asked else f"what JAX {found['jax']} asks for is unknown"
    return (
        f"libtpu {found['libtpu'] or 'of an unknown version'} is installed, {wanted}: in the repository, "
        "pip install '.[plan]' brings the one that fits."
    )


def text(compiled: Any) -> str:
    """The HLO of a compiled program.

    Raises:
      InputError: where JAX can't read it, as of a libtpu that is newer than JAX.
    """
    try:
        return str(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        told = f"JAX can't read the program that libtpu compiled ({first_line(error, 200)})."
        raise InputError(" ".join(filter(None, (told, mismatch())))) from None
