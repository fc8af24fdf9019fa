"""What JAX and its friends are told once, at the start of a command."""

from __future__ import annotations

import logging
import sys

import jax

from spectran_jax import data
from spectran_jax.config import Config


def configure_jax(config: Config) -> None:
    """Turns on the persistent compilation cache in the user's cache folder, and quiets libraries' chatter."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(data.data_dir(config) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    logging.getLogger("jax._src.compilation_cache").setLevel(logging.ERROR)
    # A save that fails is told once, by `Checkpoints`; Orbax logs it again from each of its threads, with tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _without_closed_loops


def _without_closed_loops(unraisable: sys.UnraisableHookArgs) -> None:
    """Passes over writes under way when another one failed: they report to an event loop that Orbax has closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
