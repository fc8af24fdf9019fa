"""The pure functions that evaluation and recommending compile: the item table, user states, ranks, what is watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectran_jax.layout import EvalBatch
from spectran_jax.ranking import rank_targets
from spectran_jax.recommender import ItemTable, Recommender
from spectran_jax.training import catalogue
from spectran_jax.training.step import Frozen, Params


def make_encode_chunk(
    model: Recommender, size: int
) -> Callable[[Params, Frozen, dict[str, Any], ItemTable, Int[Array, ""]], ItemTable]:
    """`encode_chunk(params, frozen, rows, table, start)`: the table with the vectors of `size` items from `start` on.

    `rows` holds those items' rows of the arrays that the host keeps. Run with `table` donated, it is written in place.
    """
    names = model.item_encoder.item_params
    part = model.of_items(size)

    def encode_chunk(
        params: Params, frozen: Frozen, rows: dict[str, Any], table: ItemTable, start: Int[Array, ""]
    ) -> ItemTable:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size)  # noqa: E731
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: cut(p).astype(jnp.float32) if catalogue.has_item_rows(path, names) else p, params
        )
        arrays = {
            name: cut(array) if name in model.item_encoder.item_arrays else array
            for name, array in frozen.item_encoder.items()
        }
        made = part.apply({"params": params, "frozen": {"item_encoder": arrays | rows}}, method=part.table)
        return jax.tree.map(lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, start, 0), table, made)

    return encode_chunk


def make_last_states(
    model: Recommender,
) -> Callable[[Params, ItemTable, EvalBatch], Float[jax.Array, "B d"]]:
    """`last_states(params, table, batch)`: the user state after the newest item of each history."""

    def last_states(params: Params, table: ItemTable, batch: EvalBatch) -> Float[jax.Array, "B d"]:
        inputs = table.inputs(batch.item_ids)
        states = jnp.asarray(model.apply({"params": params}, inputs, batch.layout, method=model.read))
        return jnp.take_along_axis(states, batch.last[:, None, None], axis=1)[:, 0]

    return last_states


def make_rank_step(model: Recommender) -> Callable[[Params, ItemTable, EvalBatch], Int[jax.Array, "B"]]:
    """`rank_step(params, table, batch)`: 0-based rank of each target among the whole catalogue."""
    last_states = make_last_states(model)

    def rank_step(params: Params, table: ItemTable, batch: EvalBatch) -> Int[jax.Array, "B"]:
        seen = batch.seen if batch.seen.shape[1] else None
        return rank_targets(last_states(params, table, batch), table.vectors, batch.targets, seen)

    return rank_step


def make_diagnostics(model: Recommender) -> Callable[[Params, Frozen], dict[str, jax.Array]]:
    """`diagnostics(params, frozen)`: what the item encoder wants watched, at each reading of the validation set."""

    def diagnostics(params: Params, frozen: Frozen) -> dict[str, jax.Array]:
        values: Any = model.apply({"params": params, "frozen": frozen.collection()}, method=model.diagnostics)
        return values

    return diagnostics
