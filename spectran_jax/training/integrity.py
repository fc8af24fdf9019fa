"""A checksum of a pytree of arrays, and whether its numbers are finite.

Large arrays are reduced on the devices, where they lie, so that no host sees more than a part of them. The sums are of
integers: neither the mesh nor the number of processes changes them.
"""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectran_jax.digest import json_digest

_SMALL_BYTES = 2**20
"""Arrays up to this size are read by the host, which compiles nothing."""
_ODD = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)
"""Odd multipliers, one for each axis; of xxHash and MurmurHash3."""


def inspect(tree: Any) -> tuple[str, str | None]:
    """The checksum of a pytree, 64 hex digits, and the path of its first leaf that holds NaN or infinity.

    Noise, such as a page that was torn or is of another state, is noticed with a probability of 1 - 2^-64 for each
    leaf; it is no defence against forgery. Where arrays lie on several hosts, each of these calls this.

    Args:
      tree: arrays on the devices, of bool, or of numbers of at most 32 bits.
    """
    flat = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    large = jax.device_get({name: _on_device(leaf) for name, leaf in flat if leaf.nbytes > _SMALL_BYTES})
    described, broken = [], None
    for name, leaf in flat:
        sums, finite = large[name] if name in large else _on_host(jax.device_get(_whole(leaf)))
        described.append([name, str(leaf.dtype), list(leaf.shape), np.asarray(sums).tolist()])
        broken = name if broken is None and not finite else broken
    return json_digest(described), broken


def _whole(leaf: Any) -> Any:
    """A small array on every host."""
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    everywhere = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
    return jax.jit(_same, out_shardings=everywhere)(leaf)


def _same(leaf: jax.Array) -> jax.Array:
    """By name, so that what JAX compiled for one save serves the next."""
    return leaf


def _terms(np_: types.ModuleType, leaf: Any) -> list[Any]:
    """What two sums are of: the bits of each number times an odd number that its place decides, modulo 2^32."""
    bits = leaf if leaf.dtype == np.bool_ else leaf.view(f"uint{8 * leaf.dtype.itemsize}")
    bits = bits.astype(np.uint32).reshape(leaf.shape or (1,))  # NumPy warns of scalars that overflow
    place = np_.zeros((1,) * bits.ndim, np.uint32)
    for axis, size in enumerate(leaf.shape):
        along = np_.arange(size, dtype=np.uint32).reshape([-1 if i == axis else 1 for i in range(leaf.ndim)])
        place = place * np.uint32(_ODD[axis % len(_ODD)]) + along
    return [bits * (_mixed(place ^ np.uint32(salt)) | np.uint32(1)) for salt in _ODD[:2]]


def _mixed(x: Any) -> Any:
    """The finaliser of MurmurHash3 on uint32: each bit of the input changes each of the output's half of the time."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _on_host(leaf: np.ndarray) -> tuple[Any, Any]:
    """The two sums, and whether all numbers are finite."""
    return [term.sum(dtype=np.uint32) for term in _terms(np, leaf)], np.isfinite(leaf).all()


@jax.jit
def _on_device(leaf: Any) -> tuple[Any, Any]:
    """The same, in one reduction of all three: sums of their own make XLA's CPU compiler keep their terms in memory."""
    broken = ~jnp.isfinite(leaf).reshape(leaf.shape or (1,))
    start = (np.uint32(0), np.uint32(0), np.False_)
    *sums, any_broken = jax.lax.reduce((*_terms(jnp, leaf), broken), start, _joined, tuple(range(broken.ndim)))
    return sums, ~any_broken


def _joined(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    return one[0] + other[0], one[1] + other[1], one[2] | other[2]
