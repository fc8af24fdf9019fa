"""The micro-batches of a step: each shard's part of the batch in pieces, whose item vectors travel one after another.

A batch of several groups a shard (`data.packing.Plan.groups`) is cut into as many pieces, of one group a shard each.
Each has a list of items of its own (`exchange.py`), and all score the same negatives. What the pieces' losses add up to
is the loss of the whole batch, so that a step gives the same numbers with any number of them.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectran_jax.gather import gather_rows
from spectran_jax.layout import TrainBatch
from spectran_jax.objectives import History, Negatives, Objective
from spectran_jax.recommender import Recommender
from spectran_jax.training import catalogue
from spectran_jax.training.step import Scalars, step_history, step_negatives, touched_items

Lists = tuple[Float[Array, "S w d"], ...]
"""Vectors where the shards of the batch read them, or their gradients, of each list of an exchange."""


class Piece(NamedTuple):
    """A micro-batch, and what came for it."""

    batch: TrainBatch
    found: Int[Array, "S w"]
    """Its distinct items at each shard."""
    drawn: Int[Array, "n"]
    """The negatives."""
    drawn_found: Int[Array, "S w"]
    """The distinct items among which the negatives are: those of `found`, or a list of their own."""
    came: Lists
    """The vectors of `found`, and those of the negatives where they have a list of their own."""


def touched_at_most(group_items: int, negatives: int, num_items: int, micro_batches: int) -> list[int]:
    """Distinct items of each list that a step exchanges: one a micro-batch, and with several one of the negatives.

    Args:
      group_items: items of the histories in a group of the batch, at most.
      negatives: that all share.
      num_items: N.
      micro_batches: of a step.
    """
    if micro_batches == 1:
        return [min(group_items + negatives, num_items)]
    return [min(group_items, num_items)] * micro_batches + [min(negatives, num_items)]


def touched(pieces: list[TrainBatch], shards: int, drawn: Int[Array, "n"], no_item: int) -> list[Int[Array, "S m"]]:
    """The ids of each list of `touched_at_most`, with repetitions; all shards score the same negatives."""
    shared = jnp.broadcast_to(drawn, (shards, len(drawn)))
    lists = []
    for piece in pieces:
        own = touched_items(piece, drawn[:0], no_item).reshape(2, shards, -1)
        lists.append(jnp.concatenate(own, axis=1))
    if len(pieces) > 1:
        return [*lists, shared]
    return [jnp.concatenate([*lists, shared], axis=1)]


def cut(batch: TrainBatch, shards: int) -> list[TrainBatch]:
    """One batch of each group that a shard has, of one group a shard."""
    number = len(batch.supervised) // shards
    if number == 1:
        return [batch]
    batch = batch._replace(layout=batch.layout._replace(row=batch.layout.row_numbers()))
    apart = lambda leaf: leaf.reshape(shards, number, -1, *leaf.shape[1:]).swapaxes(0, 1)  # noqa: E731
    whole = lambda leaf, i: leaf[i].reshape(-1, *leaf.shape[3:])  # noqa: E731
    pieces = jax.tree.map(apart, batch)
    return [jax.tree.map(functools.partial(whole, i=i), pieces) for i in range(number)]


def loss(
    module: Recommender,
    objective: Objective,
    sampler: dict[str, Any],
    piece: Piece,
    total_weight: Float[Array, ""],
) -> tuple[Float[Array, ""], Scalars]:
    """A micro-batch's part of the loss of the whole batch, from each shard's own copy of the vectors that it touches.

    `total_weight` is that of the whole batch.
    """
    batch, found, drawn = piece.batch, piece.found, piece.drawn
    shards = len(found)
    grouped = lambda x: x.reshape(shards, -1, *x.shape[1:])  # noqa: E731
    at = jax.vmap(catalogue.place)
    rows, length = batch.item_ids.shape
    vectors = jnp.concatenate(piece.came, axis=1)
    item_at = at(found, batch.item_ids.reshape(shards, -1))
    inputs = jax.vmap(gather_rows)(vectors, item_at).reshape(rows, length, -1)
    states = module.read(inputs, batch.layout, train=True)
    targets, weight = batch.at_supervised(batch.targets), batch.weight()
    drawn_at = at(piece.drawn_found, jnp.broadcast_to(drawn, (shards, len(drawn))))
    drawn_at += vectors.shape[1] - piece.came[-1].shape[1]
    given = step_negatives(objective, sampler, batch, targets, drawn, drawn_at)
    given = given._replace(excluded=grouped(given.excluded), excluded_mass=grouped(given.excluded_mass))
    axes = Negatives(0, None, 0, 0)  # type: ignore[arg-type]
    if objective.history_negatives:
        history = History(*map(grouped, step_history(module, batch, states, inputs)))
        given, axes = given._replace(history=history), axes._replace(history=History(0, 0))  # type: ignore[arg-type]

    def of_shard(states: Array, items: Array, positive: Array, weight: Array, given: Negatives) -> Any:
        no_candidates = jnp.zeros(0, bool)
        return objective.loss(
            states, items, positive_ids=positive, weight=weight, negatives=given, candidates=no_candidates
        )

    losses, extra = jax.vmap(of_shard, in_axes=(0, 0, 0, 0, axes))(
        grouped(batch.at_supervised(states)),
        module.scored(vectors),
        at(found, grouped(targets)),
        grouped(weight),
        given,
    )
    # Each is a mean over its shard's supervised positions.
    share = grouped(weight).sum(axis=1) / jnp.maximum(total_weight, 1)
    total = jnp.sum(share * losses)
    return total, {"loss": total, **{name: jnp.sum(share * value) for name, value in extra.items()}}
