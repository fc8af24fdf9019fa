"""What JAX and its friends are told once, at the start of a command."""

from __future__ import annotations

import logging

import jax

from spectran_jax import data
from spectran_jax.config import Config


def configure_jax(config: Config) -> None:
    """Turns on the persistent compilation cache in the user's cache folder, and quiets libraries' chatter."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(data.data_dir(config) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("jax._src.compilation_cache").setLevel(logging.ERROR)
