"""Digests that outside scripts can compute again: of parameters, and of a protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from spectran_jax.errors import InputError

_BLOCK_BYTES = 64 * 2**20


def params_digest(params: Any) -> str:
    """SHA-256 over path, dtype, shape and bytes of a pytree's leaves in the order of their paths, 64 hex digits.

    For each leaf, by path as a Unicode string: the UTF-8 bytes of `path`, newline, dtype, newline, the sizes joined
    by commas, newline; then the values in C order, little-endian. A path joins its keys by `/`, for example
    `backbone/block_0/attention/kernel`; a dtype is NumPy's name, for example `float32`.

    Args:
      params: arrays on devices or on the host; fetched one by one, explicitly. Where they lie on several hosts, each of
        these calls this.
    """
    leaves = {keystr(path, simple=True, separator="/"): leaf for path, leaf in tree_leaves_with_path(params)}
    digest = hashlib.sha256()
    for path in sorted(leaves):
        leaf = leaves[path]
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        digest.update(f"{path}\n{np.dtype(leaf.dtype).name}\n{','.join(map(str, np.shape(leaf)))}\n".encode())
        for block in _blocks(leaf):
            digest.update(np.ascontiguousarray(_fetch(block)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def code_digest() -> str:
    """SHA-256 over the sources of this package, 64 hex digits: what was measured by one digest is one code."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value: sorted keys, no spaces, UTF-8; 64 hex digits.

    Tuples count as lists, NumPy numbers as Python's.

    Raises:
      InputError: for what JSON can't hold, NaN and infinity among it.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
        )
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A fingerprint holds numbers, text, lists and objects that JSON can hold: {error}."
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def _blocks(leaf: Any) -> Iterator[Any]:
    """Consecutive rows of an array that lies on several hosts, on each of them, some MiB at a time; others whole."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        yield leaf
        return
    assert isinstance(leaf.sharding, jax.sharding.NamedSharding)
    everywhere = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
    # By ids, and not as a slice, which XLA would cut out of a copy of the whole array.
    take = jax.jit(lambda array, ids: array[ids], out_shardings=everywhere)
    size = max(1, _BLOCK_BYTES // (leaf.nbytes // len(leaf) or 1))
    for start in range(0, len(leaf), size):
        yield take(leaf, np.arange(start, min(start + size, len(leaf)), dtype=np.int32))


def _fetch(leaf: Any) -> np.ndarray:
    array = np.asarray(jax.device_get(leaf))
    if array.dtype.hasobject:
        raise InputError(f"A digest is of arrays of numbers, got {array.dtype}.")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"got {type(value).__name__}")
