"""What JAX and its friends are told once, at the start of a command."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from typing import Any

import jax

from spectran_jax import data
from spectran_jax.config import Config

logger = logging.getLogger(__name__)

_CACHE_FAULT = re.compile(r"Error (reading|writing) persistent compilation cache entry for '[^']*': (.{0,200})")
"""What JAX warns of, once for every program."""
_TOLD = {
    "reading": "%s holds compiled programs that can't be read (%s). They are compiled anew, at every start until it is "
    "deleted.",
    "writing": "%s can't keep compiled programs (%s). They are compiled anew at every start.",
}


def configure_jax(config: Config) -> None:
    """Turns on the persistent compilation cache in the user's cache folder, and quiets libraries' chatter."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(data.data_dir(config) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # Attention of a GPU's library is compiled under the address of a Python object: with that in its key, no
    # program that has it would be found again.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    logging.getLogger("jax._src.compilation_cache").setLevel(logging.ERROR)
    # A save that fails is told once, by `Checkpoints`; Orbax logs it again from each of its threads, with tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _without_closed_loops
    if not isinstance(warnings.showwarning, _CacheFaultsOnce):
        warnings.showwarning = _CacheFaultsOnce(warnings.showwarning)


class _CacheFaultsOnce:
    """Shows warnings as before, but those of JAX's cache of compiled programs once of each kind, in plain words."""

    def __init__(self, show: Any) -> None:
        self._show, self._told = show, set[str]()

    def __call__(self, message: Warning | str, *where: Any, **how: Any) -> None:
        found = _CACHE_FAULT.match(str(message))
        if found is None:
            self._show(message, *where, **how)
        elif found[1] not in self._told:
            self._told.add(found[1])
            logger.warning(_TOLD[found[1]], jax.config.values["jax_compilation_cache_dir"], found[2])


def _without_closed_loops(unraisable: sys.UnraisableHookArgs) -> None:
    """Passes over writes under way when another one failed: they report to an event loop that Orbax has closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
