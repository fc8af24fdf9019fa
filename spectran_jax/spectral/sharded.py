"""The Gram decomposition as programs over a mesh of devices, the rows of X sharded over all of them.

    accumulate   each device adds its rows to its own X^T X: no communication, however many blocks of rows there are
    solve        the one reduction, m x m; then eigenvectors, the same on every device
    project      each device turns its rows into coordinates: no communication

What runs them block by block, from files, is `sharded_route`. float64 programs are traced and called under
`jax.enable_x64(True)`; a TPU has no float64, so there they are float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int, Num

_EXACT = jax.lax.Precision.HIGHEST
"""Not the bfloat16 passes of a TPU's default, nor a GPU's TF32."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """What the rows so far add up to, an entry for each of S devices. Rows are scaled, then shifted by `shift`."""

    gram: Float[jax.Array, "S m m"]
    total: Float[jax.Array, "S m"]
    """Sum of the rows."""
    energy: Float[jax.Array, "S"]
    """Sum of squares of the scaled rows, not shifted."""
    count: Int[jax.Array, "S"]
    """int32, rows that took part."""
    bad: Int[jax.Array, "S"]
    """int32, rows that hold NaN or inf; they are left out."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Eigen:
    """What a reduction and an eigensolver make of `Sums`; the same on every device."""

    values: Float[jax.Array, "m"]
    """Eigenvalues of the (centred) Gram matrix of all rows, descending."""
    vectors: Float[jax.Array, "m m"]
    """Their eigenvectors, one a column."""
    mean: Float[jax.Array, "m"]
    """Mean of the scaled rows; zeros where they are not centred."""
    energy: Float[jax.Array, ""]
    count: Int[jax.Array, ""]
    bad: Int[jax.Array, ""]


@dataclasses.dataclass(frozen=True)
class Programs:
    """Jitted functions for one mesh, with their shardings. `part` is False for rows that take no part."""

    start: Callable[[int], Sums]
    """`start(m)`: sums of no rows, made where they lie."""
    accumulate: Callable[[Sums, Num[jax.Array, "B m"], Bool[jax.Array, "B"], Float[jax.Array, "m"]], Sums]
    """`accumulate(sums, x, part, shift)`; sums are donated. x: floating rows, sharded by `rows`, B divisible by the
    devices; shift: replicated."""
    solve: Callable[[Sums, Float[jax.Array, "m"]], Eigen]
    """`solve(sums, shift)`."""
    project: Callable[
        [Num[jax.Array, "B m"], Bool[jax.Array, "B"], Float[jax.Array, "m"], Float[jax.Array, "m r"]],
        Float[jax.Array, "B r"],
    ]
    """`project(x, part, mean, weights)`: (scaled row - mean) @ weights, zeros for rows without part."""
    rows: NamedSharding
    """Of x, part, the coordinates, and of `Sums`: the leading axis over all axes of the mesh."""
    whole: NamedSharding
    """Of what every device holds: shift, mean, weights."""


@functools.lru_cache(maxsize=8)
def programs(mesh: Mesh, *, normalize_rows: bool = True, center: bool = True, dtype: str = "float64") -> Programs:
    """The programs of a decomposition.

    Args:
      mesh: devices of any processes, any axes.
      normalize_rows: scale each row to unit length first; a row of zeros then takes no part.
      center: subtract the mean row.
      dtype: "float64" or "float32", of sums, eigenvectors and coordinates.
    """
    axes = mesh.axis_names
    by_row, same = PartitionSpec(axes), PartitionSpec()
    rows, whole = NamedSharding(mesh, by_row), NamedSharding(mesh, same)
    over = functools.partial(jax.shard_map, mesh=mesh)

    def start(m: int) -> Sums:
        zeros = functools.partial(jnp.zeros, dtype=dtype)
        none = jnp.zeros(mesh.size, np.int32)
        return Sums(zeros((mesh.size, m, m)), zeros((mesh.size, m)), zeros(mesh.size), none, none)

    def scaled(x: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rows, which of them take part, and their norms before the last scaling."""
        x = x.astype(dtype)
        part &= jnp.isfinite(x).all(axis=1)
        if normalize_rows:
            # Exact; squares of tiny or huge numbers would be 0 or infinite.
            x = jnp.ldexp(x, -jnp.frexp(jnp.max(jnp.abs(x), axis=1, keepdims=True))[1])
        norm = jnp.sqrt(jnp.sum(x * x, axis=1))
        if normalize_rows:
            part &= norm > 0
            x *= jnp.where(part, 1 / norm, 0)[:, None]
        return x, part, norm

    def accumulate(sums: Sums, x: jax.Array, part: jax.Array, shift: jax.Array) -> Sums:
        scaled_x, present, norm = scaled(x, part)
        shifted = jnp.where(present[:, None], scaled_x - shift, 0)
        energy = jnp.where(present, 1 if normalize_rows else norm * norm, 0)
        more = Sums(
            jnp.matmul(shifted.T, shifted, precision=_EXACT),
            shifted.sum(axis=0),
            energy.astype(dtype).sum(),
            jnp.sum(present, dtype=np.int32),
            jnp.sum(part & ~jnp.isfinite(x.astype(dtype)).all(axis=1), dtype=np.int32),
        )
        return jax.tree.map(lambda old, new: old + new[None], sums, more)

    def solve(sums: Sums, shift: jax.Array) -> Eigen:
        sums = jax.tree.map(lambda part: jax.lax.psum(part[0], axes), sums)
        off = sums.total / jnp.maximum(sums.count, 1)
        gram, mean = sums.gram, jnp.zeros_like(off)
        if center:
            gram, mean = gram - sums.count * jnp.outer(off, off), shift + off
        values, vectors = jnp.linalg.eigh(gram)
        return Eigen(values[::-1], vectors[:, ::-1], mean, sums.energy, sums.count, sums.bad)

    def project(x: jax.Array, part: jax.Array, mean: jax.Array, weights: jax.Array) -> jax.Array:
        scaled_x, present, _ = scaled(x, part)
        # Zeros before the product: what absent rows hold, NaN perhaps, is nobody's.
        return jnp.matmul(jnp.where(present[:, None], scaled_x - mean, 0), weights, precision=_EXACT)

    jit: Any = jax.jit
    return Programs(
        start=jit(start, static_argnums=0, out_shardings=rows),
        accumulate=jit(over(accumulate, in_specs=(by_row, by_row, by_row, same), out_specs=by_row), donate_argnums=0),
        solve=jit(over(solve, in_specs=(by_row, same), out_specs=same)),
        project=jit(over(project, in_specs=(by_row, by_row, same, same), out_specs=by_row)),
        rows=rows,
        whole=whole,
    )
