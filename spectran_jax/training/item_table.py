"""The table of all item vectors on a mesh: how it is made, and how a batch reads, ranks and searches it.

Where tables are cut over the devices, each encodes its own rows and searches them, and what travels is states, ranks
and lists of k items: nothing of the catalogue's length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from spectran_jax.layout import EvalBatch
from spectran_jax.ranking import Shard, rank_targets, top_k
from spectran_jax.recommender import ItemTable, Recommender
from spectran_jax.training import catalogue, partitioning
from spectran_jax.training.partitioning import AXES
from spectran_jax.training.step import Frozen, Params

_CHUNK_BYTES = 64 * 2**20
"""Of item rows that a device encodes at once."""


@dataclasses.dataclass(frozen=True)
class Access:
    """How a table lies on the mesh, and what may be asked of it under jit."""

    mesh: Mesh
    items: int
    """N; rows from there on are no items."""
    rows: int
    """Rows of the table."""

    @property
    def cut(self) -> bool:
        """Whether each device has some of the rows, and not all of them."""
        return partitioning.shards_items(self.mesh, self.rows)

    @property
    def parts(self) -> int:
        """Runs of rows that the table is cut into."""
        return self.mesh.size if self.cut else 1

    @property
    def shard(self) -> Shard:
        """What the rows of one device are of the whole."""
        return Shard(AXES if self.cut else (), self.items)

    def inputs(self, table: ItemTable, ids: Int[Array, "B L"]) -> Float[Array, "B L d"]:
        """The vectors of these items as the backbone reads them, float32."""
        read = lambda table, ids: self.shard.gather(table.vectors, ids, table.inputs)  # noqa: E731
        vectors = self._everywhere(read, table, ids)
        return jax.lax.with_sharding_constraint(vectors, partitioning.sharding(self.mesh, "batch"))

    def ranks(
        self,
        table: ItemTable,
        states: Float[Array, "B d"],
        targets: Int[Array, "B"],
        seen: Int[Array, "B S"] | None,
    ) -> Int[Array, "B"]:
        """See `ranking.rank_targets`."""
        rank = lambda table, states, targets, seen: rank_targets(  # noqa: E731
            states, table.vectors, targets, seen, shard=self.shard
        )
        return self._everywhere(rank, table, states, targets, seen)

    def top_k(
        self,
        table: ItemTable,
        states: Float[Array, "B d"],
        k: int,
        seen: Int[Array, "B S"] | None,
        recall: float | None,
    ) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
        """See `ranking.top_k`."""
        top = lambda table, states, seen: top_k(  # noqa: E731
            states, table.vectors, k, seen, recall=recall, shard=self.shard
        )
        return self._everywhere(top, table, states, seen)

    def _everywhere(self, function: Callable[..., Any], table: ItemTable, *arguments: Any) -> Any:
        """`function` on every device's rows and on whole arguments; it gives the same on all of them."""
        if not self.cut:
            return function(table, *arguments)
        whole = PartitionSpec()
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(PartitionSpec(AXES), *(whole,) * len(arguments)),
            out_specs=whole,
            check_vma=False,
        )(table, *arguments)


def make_last_states(
    model: Recommender, access: Access
) -> Callable[[Params, ItemTable, EvalBatch], Float[jax.Array, "B d"]]:
    """`last_states(params, table, batch)`: the user state after the newest item of each history."""

    def last_states(params: Params, table: ItemTable, batch: EvalBatch) -> Float[jax.Array, "B d"]:
        inputs = access.inputs(table, batch.item_ids)
        states = jnp.asarray(model.apply({"params": params}, inputs, batch.layout, method=model.read))
        return jnp.take_along_axis(states, batch.last[:, None, None], axis=1)[:, 0]

    return last_states


def make_rank_step(model: Recommender, access: Access) -> Callable[[Params, ItemTable, EvalBatch], Int[jax.Array, "B"]]:
    """`rank_step(params, table, batch)`: 0-based rank of each target among the whole catalogue."""
    last_states = make_last_states(model, access)

    def rank_step(params: Params, table: ItemTable, batch: EvalBatch) -> Int[jax.Array, "B"]:
        return access.ranks(table, last_states(params, table, batch), batch.targets, batch.left_out)

    return rank_step


def make_encode_chunk(
    model: Recommender, access: Access, size: int
) -> Callable[[Params, Frozen, dict[str, Any], ItemTable, Int[Array, ""]], ItemTable]:
    """`encode_chunk(params, frozen, rows, table, start)`: the table with `size` more vectors of each part of it.

    They are those of a part's rows from `start` on; `rows` holds the same rows, part by part, of the arrays that the
    host keeps. Run with `table` donated, it is written in place. Rows that are no items get zero.
    """
    names, arrays_by_row = model.item_encoder.item_params, model.item_encoder.item_arrays
    part = model.of_items(size)

    def encode_chunk(
        params: Params, frozen: dict[str, Any], rows: dict[str, Any], table: ItemTable, start: Int[Array, ""]
    ) -> ItemTable:
        # By numbers, and not as a slice: of int8 a TPU's compiler would cut that out of a copy of the whole array.
        here = start + jnp.arange(size)
        cut = lambda x: x.at[here].get(mode="clip", unique_indices=True, indices_are_sorted=True)  # noqa: E731
        params = catalogue.map_item_rows(lambda p: cut(p).astype(jnp.float32), names, params)
        arrays = catalogue.map_item_rows(cut, arrays_by_row, frozen)["item_encoder"] | rows
        made: Any = part.apply({"params": params, "frozen": {"item_encoder": arrays}}, method=part.table)
        real = access.shard.first(table.vectors) + start + jnp.arange(size) < access.items
        made = made._replace(vectors=jnp.where(real[:, None], made.vectors, 0))
        return jax.tree.map(lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, start, 0), table, made)

    def chunk(
        params: Params, frozen: Frozen, rows: dict[str, Any], table: ItemTable, start: Int[Array, ""]
    ) -> ItemTable:
        collection = frozen.collection()
        if not access.cut:
            return encode_chunk(params, collection, rows, table, start)
        by_row, whole = PartitionSpec(AXES), PartitionSpec()
        specs, frozen_specs = partitioning.row_specs(params, names), partitioning.row_specs(collection, arrays_by_row)
        return jax.shard_map(
            encode_chunk,
            mesh=access.mesh,
            in_specs=(specs, frozen_specs, by_row, by_row, whole),
            out_specs=by_row,
            check_vma=False,
        )(params, collection, rows, table, start)

    return chunk


@dataclasses.dataclass(frozen=True)
class TableBuilder:
    """`table(params, frozen)`: all item vectors, encoded some MiB of rows at a time."""

    access: Access
    size: int
    """Rows of each part that are encoded at once."""
    host_arrays: dict[str, np.ndarray]
    """Arrays of one row an item that the host keeps."""
    empty: Callable[[], ItemTable]
    encode_chunk: Callable[..., ItemTable]
    """See `make_encode_chunk`; under jit."""

    def __call__(self, params: Params, frozen: Frozen) -> ItemTable:
        """The table."""
        made, each = self.empty(), self.access.rows // self.access.parts
        scalar = jax.ShapeDtypeStruct((), np.int32, sharding=partitioning.replicated(self.access.mesh))
        for start in range(0, each, self.size):
            start = min(start, each - self.size)  # the last chunk overlaps the one before it
            rows = {name: self._rows(array, start) for name, array in self.host_arrays.items()}
            at = partitioning.put_array(np.asarray(start, np.int32), scalar)
            made = self.encode_chunk(params, frozen, rows, made, at)
        return made

    @property
    def sharding(self) -> jax.sharding.NamedSharding:
        """Of what has one row an item."""
        return partitioning.item_sharding(self.access.mesh, self.access.rows)

    def _rows(self, array: np.ndarray, start: int) -> jax.Array:
        """`size` rows of each part from `start` on, the parts one after another."""
        each = self.access.rows // self.access.parts
        runs = [part * each + np.arange(start, start + self.size) for part in range(self.access.parts)]
        places = np.concatenate(runs)

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            ids = places[index[0]]
            found = array[np.minimum(ids, len(array) - 1)]
            return np.where((ids < len(array)).reshape(-1, *[1] * (array.ndim - 1)), found, 0).astype(array.dtype)

        shape = (len(places), *array.shape[1:])
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_callback(shape, self.sharding, read, dtype=array.dtype)


# A server asks again and again: what was compiled for a model is kept.
@functools.lru_cache(16)
def _table_programs(
    model: Recommender, access: Access, size: int
) -> tuple[Callable[[], ItemTable], Callable[..., ItemTable]]:
    """`empty` and `encode_chunk` of a `TableBuilder`."""
    shardings = partitioning.table_sharding(access.mesh, access.rows)
    shape = access.rows, model.item_encoder.dimension
    empty = jax.jit(lambda: ItemTable(jnp.zeros(shape), jnp.zeros(access.rows)), out_shardings=shardings)
    return empty, jax.jit(make_encode_chunk(model, access, size), donate_argnums=3, out_shardings=shardings)


def table_builder(
    model: Recommender, access: Access, frozen: dict[str, Any], host_arrays: dict[str, np.ndarray]
) -> TableBuilder:
    """What makes the table of a model.

    Args:
      model: over the rows of the table.
      access: how the table lies.
      frozen: the frozen arrays of the item encoder that the devices hold, or their shapes.
      host_arrays: those that the host keeps.
    """
    by_row = {n: x for n, x in (frozen | host_arrays).items() if n in model.item_encoder.item_arrays}
    width = sum(int(np.prod(array.shape[1:])) for array in by_row.values()) + 4 * model.item_encoder.dimension
    size = min(access.rows // access.parts, max(1, _CHUNK_BYTES // (4 * width)))
    return TableBuilder(access, size, host_arrays, *_table_programs(model, access, size))
