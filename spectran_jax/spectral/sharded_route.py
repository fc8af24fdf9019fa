"""The Gram route over a mesh: each process reads its own rows, a block at a time, and feeds its own devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from spectran_jax import processes
from spectran_jax.errors import InputError
from spectran_jax.npy import BFLOAT16
from spectran_jax.spectral import sharded
from spectran_jax.spectral.coordinates import Block
from spectran_jax.spectral.routes import Options, Solution, checked, kept
from spectran_jax.spectral.rows import SurveyedRows, not_finite, provisional_sum

BLOCK_BYTES = 4 * 2**20
"""Of rows in the precision of the sums, that a process feeds at a time; two blocks, and what is made of one, are alive
at once."""
BLOCK_ROWS = 1024
"""Rows of a block at least, up to m: with fewer, adding to the m x m sums would take longer than the product."""

_AS_STORED = (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32))
"""What goes to the devices as it is; the rest is converted on the host."""


def block_rows(m: int, precision: np.dtype[Any], rows: int, devices: int) -> int:
    """Rows of m dimensions that a process with `rows` of them feeds its devices at a time, a multiple of those."""
    size = min(rows, max(BLOCK_BYTES // (precision.itemsize * m), min(BLOCK_ROWS, m)))
    return -(-size // devices) * devices


def mesh_for(precision: str, *, shared: bool) -> Mesh:
    """The mesh of a decomposition: of all processes' devices, or of this one's.

    float64 runs on the hosts' CPUs, as accelerators have none (TPU) or a slow one; float32 on the accelerators.

    Raises:
      InputError: float64, and JAX was started without its CPU backend.
    """
    backend = "cpu" if precision == "float64" else None
    try:
        devices = jax.devices(backend) if shared else jax.local_devices(backend=backend)
    except RuntimeError:
        raise InputError(
            "--decomposition_precision=float64 runs on the hosts' CPUs, which JAX_PLATFORMS leaves out: add cpu to it, "
            "or take --decomposition_precision=float32."
        ) from None
    return Mesh(np.asarray(devices), ("row",))


def gram_over_mesh(
    x: np.ndarray, part: Bool[np.ndarray, "N"], options: Options, mesh: Mesh, *, first_row: int = 0, items: int = 0
) -> Solution:
    """V from X^T X, summed where the rows are (`sharded`); for n >= m.

    Over a mesh of several processes it is collective. Each process has the solution of all rows, bit by bit the same;
    but `rows` and `project` are about its own.

    Args:
      x: the rows of this process.
      part: which of them take part.
      options: `precision` is that of the sums.
      mesh: the same number of devices of each process.
      first_row: the number of the first of these rows among all, for messages.
      items: rows of all processes, for messages; those of this one by default.

    Raises:
      InputError: NaN or inf, sums of squares beyond the range of `precision`, fewer than two items with text, all rows
        alike; the same on every process.
    """
    feed = _Feed(x, part, mesh, options)
    feed.meet()
    longest = int(feed.every(np.array(len(x))).max())
    shift = feed.shift()
    programs, dtype = feed.programs, np.dtype(options.precision)
    sums = feed.run(programs.start, x.shape[1])
    on_devices = feed.put(shift, programs.whole)
    for _, block, present in feed.blocks(longest):
        jax.block_until_ready(sums)  # of the block before: the next was read meanwhile, one more would pile up
        sums = feed.run(programs.accumulate, sums, block, present, on_devices)
    feed.wait()  # one may have read for hours longer than another
    eigen = feed.run(programs.solve, sums, on_devices)
    del sums
    found = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), eigen)
    if found.bad:
        raise _not_finite(x, part, options, feed, int(found.bad), first_row, items or len(x))
    if not (np.isfinite(found.energy) and np.isfinite(found.values).all()):
        other = " take --decomposition_precision=float64, or" if options.precision == "float32" else ""
        raise InputError(
            f"The squares of the text embeddings sum up to more than {options.precision} holds:{other} scale them down."
        )
    # One solver's eigenvectors for all: two kinds of hosts may differ in the sign, or more, of near-equal ones.
    values, vectors, mean = (feed.one(array).astype(np.float64) for array in (found.values, found.vectors, found.mean))
    rows = checked(SurveyedRows(x, part, None, mean, float(found.energy), int(found.count)), items or len(x))
    noise = rows.noise
    if options.precision == "float32":
        # Of equal rows the shift leaves rounding, and that is squared.
        noise = 16 * float(np.finfo(np.float32).eps) * rows.energy**0.5
    roots, basis = kept(values, vectors, noise, options)

    def project(weights: Float[np.ndarray, "m r"]) -> Iterator[Block]:
        on_devices = [feed.put(array.astype(dtype), programs.whole) for array in (mean, weights)]
        pending: tuple[slice, jax.Array] | None = None
        for where, block, present in feed.blocks(longest):
            if pending is not None:
                yield _fetched(*pending)
            pending = where, feed.run(programs.project, block, present, *on_devices)
        if pending is not None:
            yield _fetched(*pending)

    return Solution(rows, roots, basis, project=project)


@dataclasses.dataclass(frozen=True)
class _Feed:
    """The rows of this process as parts of global arrays."""

    x: np.ndarray
    part: Bool[np.ndarray, "N"]
    mesh: Mesh
    options: Options

    @property
    def programs(self) -> sharded.Programs:
        options = self.options
        return sharded.programs(
            self.mesh, normalize_rows=options.normalize_rows, center=options.center, dtype=options.precision
        )

    @property
    def shared(self) -> bool:
        """Whether the mesh is of several processes."""
        return len({device.process_index for device in self.mesh.devices.flat}) > 1

    def meet(self) -> None:
        """Connects the devices of all processes while all are here.

        CPUs beside accelerators have exchanged nothing yet, and with their first exchange the one that comes first
        gives up on the others after half a minute.
        """
        if self.shared:
            self.wait()
            ones = self.put(np.ones(len(self.mesh.local_devices), np.float32), self.programs.rows)
            jax.block_until_ready(jax.jit(jnp.sum, out_shardings=self.programs.whole)(ones))

    def wait(self) -> None:
        """Returns when all processes of the mesh are here."""
        if self.shared:
            processes.wait()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a program in the precision that it is of."""
        with jax.enable_x64(self.options.precision == "float64"):
            return function(*arguments)

    def put(self, array: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
        """A global array from what each process has of it (all of it, where it is replicated)."""
        return self.run(jax.make_array_from_process_local_data, sharding, array)

    def every(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all processes of the mesh; waits for all, one of which may have read its rows before."""
        self.wait()
        return processes.gathered(array) if self.shared else array[None]

    def one(self, array: np.ndarray) -> np.ndarray:
        """The same array for all processes of the mesh."""
        return processes.from_first(array) if self.shared else array

    def shift(self) -> Float[np.ndarray, "m"]:
        """A provisional mean: see `routes.gram_of_columns`."""
        m, precision = self.x.shape[1], np.dtype(self.options.precision)
        if not self.options.center:
            return np.zeros(m, precision)
        total, count = provisional_sum(self.x, self.part, normalize=self.options.normalize_rows)
        sums = self.every(np.append(total, count)).sum(axis=0)
        return np.asarray(sums[:-1] / max(sums[-1], 1), precision)

    def blocks(self, longest: int) -> Iterator[tuple[slice, jax.Array, jax.Array]]:
        """One pass: which rows, their numbers, which of them take part. Filled up with rows that take no part.

        No collective: `longest`, the rows of the process that has most, says how many blocks there are.
        """
        precision = np.dtype(self.options.precision)
        dtype = self.x.dtype if self.x.dtype in _AS_STORED else precision
        m = self.x.shape[1]
        size = block_rows(m, precision, longest, len(self.mesh.local_devices))
        for start in range(0, longest, size):
            where = slice(min(start, len(self.x)), min(start + size, len(self.x)))
            # New arrays each time: a CPU device reads them where they lie.
            block, present = np.zeros((size, m), dtype), np.zeros(size, bool)
            block[: where.stop - where.start] = self.x[where]
            present[: where.stop - where.start] = self.part[where]
            yield where, self.put(block, self.programs.rows), self.put(present, self.programs.rows)


def _fetched(where: slice, u: jax.Array) -> Block:
    """This process's rows of the coordinates; those without part are zeros that add nothing."""
    shards = sorted(u.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    own = np.concatenate([np.asarray(shard.data) for shard in shards])[: where.stop - where.start]
    return where, np.ones(len(own), bool), own.astype(np.float64, copy=False)


def _not_finite(
    x: np.ndarray, part: np.ndarray, options: Options, feed: _Feed, count: int, first_row: int, items: int
) -> InputError:
    """The message that names the first bad rows of all processes."""
    named = np.full(3, np.iinfo(np.int64).max)
    found: list[int] = []
    step = max(1, BLOCK_BYTES // (8 * x.shape[1]))
    for start in range(0, len(x), step):
        block = x[start : start + step].astype(options.precision)
        bad = ~np.isfinite(block).all(axis=1) & part[start : start + step]
        found += [first_row + start + int(row) for row in np.flatnonzero(bad)]
        if len(found) >= 3:
            break
    named[: len(found[:3])] = found[:3]
    rows = sorted(int(row) for row in feed.every(named).reshape(-1))[: min(3, count)]
    return not_finite(count, items, rows)
