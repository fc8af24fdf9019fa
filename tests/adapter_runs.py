"""The adapter at start and applied, compiled: what its tests share."""

import functools

import jax
import numpy as np

KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default


@functools.cache
def start(module):
    """Parameters at start; modules are frozen and hash by their options."""
    sigma = np.linspace(1, 0.1, module.rank, dtype=np.float32)
    return jax.jit(module.init)(KEY, np.zeros((1, module.rank), np.float32), sigma)


def apply(module, params, *args, method=None):
    """`module.apply`, compiled."""
    return jax.jit(lambda p, *a: module.apply(p, *a, method=method))(params, *args)
