"""The micro-batches of a step: each shard's part of the batch in pieces, whose item vectors travel one after another.

A batch of several groups a shard (`data.packing.Plan.groups`) is cut into as many pieces, of one group a shard each.
Each has a list of items of its own (`exchange.py`), and all score the same negatives. What the pieces' losses add up to
is the loss of the whole batch, so that a step gives the same numbers with any number of them.

`take_turns` is the order of it: while one piece is computed with, the vectors of the next come and the gradients of the
one before go home. A loop with one all-to-all a round leaves the compiler's scheduler little else to put beside it; in
a program of all pieces one after another it packs and unpacks lists beside them, and computes afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from spectran_jax.gather import gather_rows
from spectran_jax.layout import TrainBatch
from spectran_jax.objectives import History, Negatives, Objective
from spectran_jax.recommender import Recommender
from spectran_jax.training import catalogue
from spectran_jax.training.step import LogQ, Scalars, step_history, step_negatives, touched_items

Lists = tuple[Float[Array, "..."], ...]
"""Something of each list of an exchange: of the M micro-batches, whose lists are of one size, stacked [M, ...]; and of
the negatives where they have a list of their own."""


class Piece(NamedTuple):
    """A micro-batch, and where what it reads stands among the vectors that came for it."""

    batch: TrainBatch
    items_at: Int[Array, "S i"]
    """int32, of each position's item."""
    targets_at: Int[Array, "S t"]
    """int32, of the item that each supervised position must find."""
    log_q: LogQ


class Drawn(NamedTuple):
    """The negatives, which all micro-batches share."""

    ids: Int[Array, "n"]
    at: Int[Array, "S n"]
    """int32: where they stand among the vectors that come for a micro-batch, those of a list of their own last."""


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


def stacked(lists: Sequence[Array]) -> Lists:
    """`Lists` of one array a list, as `exchange` has them."""
    number = max(len(lists) - 1, 1)
    return (jnp.stack(lists[:number]), *lists[number:])


def piece_of(pieces: Any, at: Int[Array, ""] | int) -> Any:
    """One of what is stacked [M, ...]."""
    return jax.tree.map(lambda leaf: leaf[at], pieces)


def touched(batches: TrainBatch, shards: int, drawn: Int[Array, "n"], no_item: int) -> list[Int[Array, "S m"]]:
    """The ids of each list of `touched_at_most`, with repetitions; all shards score the same negatives."""
    shared = jnp.broadcast_to(drawn, (shards, len(drawn)))
    lists = []
    for at in range(len(batches.item_ids)):
        own = touched_items(piece_of(batches, at), drawn[:0], no_item).reshape(2, shards, -1)
        lists.append(jnp.concatenate(own, axis=1))
    if len(lists) > 1:
        return [*lists, shared]
    return [jnp.concatenate([*lists, shared], axis=1)]


def cut(batch: TrainBatch, shards: int) -> TrainBatch:
    """The batches of each group that a shard has, of one group a shard, stacked [M, ...]."""
    number = len(batch.supervised) // shards
    batch = batch._replace(layout=batch.layout._replace(row=batch.layout.row_numbers()))

    def apart(leaf: Array) -> Array:
        leaf = leaf.reshape(shards, number, -1, *leaf.shape[1:]).swapaxes(0, 1)
        return leaf.reshape(number, -1, *leaf.shape[3:])

    return jax.tree.map(apart, batch)


def placed(
    batches: TrainBatch,
    drawn: Int[Array, "n"],
    found: Sequence[Int[Array, "S w"]],
    dealt: Callable[[Array], Array],
    log_q: Sequence[Float[Array, "S w"]],
    drawn_log_q: Float[Array, "n"],
) -> tuple[Piece, Drawn]:
    """The pieces, stacked [M, ...], and the negatives, from the distinct items of each list.

    All that is searched for is searched for here, ahead of the exchange, where it delays nothing.

    Args:
      batches: of each piece.
      drawn: negatives.
      found: numbers of the items of each list.
      dealt: numbers items so.
      log_q: of the items of each list.
      drawn_log_q: of the negatives.
    """
    number, shards = len(batches.item_ids), len(found[0])
    at = lambda found, ids: jax.vmap(catalogue.place)(found, dealt(ids))  # noqa: E731
    grouped = lambda x: x.reshape(shards, -1)  # noqa: E731

    def of(batch: TrainBatch, found: Int[Array, "S w"], log_q: Float[Array, "S w"]) -> Piece:
        read = lambda ids: jnp.take_along_axis(log_q, at(found, grouped(ids)), axis=1).reshape(ids.shape)  # noqa: E731
        return Piece(
            batch,
            at(found, grouped(batch.item_ids)),
            at(found, grouped(batch.at_supervised(batch.targets))),
            LogQ(read(batch.items), read(batch.targets), drawn_log_q),
        )

    drawn_at = at(found[-1], jnp.broadcast_to(drawn, (shards, len(drawn))))
    if number > 1:
        drawn_at += found[0].shape[1]
    lists = jnp.stack(found[:number]), jnp.stack(log_q[:number])
    return jax.vmap(of)(batches, *lists), Drawn(drawn, drawn_at)


def take_turns(
    packed: Float[Array, "M D D c d"],
    swap: Callable[[Array], Array],
    unpack: Callable[[Int[Array, ""] | int, Array], Array],
    compute: Callable[[Int[Array, ""] | int, Array], tuple[Array, Any]],
    pack: Callable[[Int[Array, ""] | int, Array], Array],
) -> tuple[Float[Array, "M D D c d"], Array, Any]:
    """Fetches the vectors of every micro-batch, computes with them, and sends their gradients home.

    Args:
      packed: vectors as their owners send them, of each micro-batch.
      swap: sends what there is for each device, and gives what came; see `exchange.swap`.
      unpack: gives the vectors of a micro-batch from what came.
      compute: gives their gradients, and what is to be summed over micro-batches.
      pack: gives what goes home.

    Returns:
      What came home and the gradients, of each micro-batch [M, ...], and the sums.
    """
    number, capacity = len(packed), packed.shape[3]
    beside = lambda vectors, gradients: jnp.concatenate([vectors, gradients], axis=2)  # noqa: E731
    send = lambda at, gradient: swap(pack(at, gradient))[None]  # noqa: E731
    # What has come is first used when a gradient is there. Else a TPU's scheduler awaits a large exchange before the
    # backward pass: carried on it is copied, and it finds no better place for the copy.
    awaited = jax.lax.optimization_barrier

    def turn(carry: Any, at: Int[Array, ""]) -> Any:
        came, before, sums = carry
        # What comes is unpacked in the next round: nothing in this one waits for it.
        coming = swap(beside(packed[at + 1], pack(at - 1, before)))
        gradient, more = compute(at, unpack(at, came[:, :, :capacity]))
        coming, gradient = awaited((coming, gradient))
        return (coming, gradient, optax.tree.add(sums, more)), (came[:, :, capacity:], before)

    first = unpack(0, swap(packed[0]))
    if number == 1:
        gradient, sums = compute(0, first)
        return send(0, gradient), gradient[None], sums
    came = swap(packed[1])
    gradient, sums = compute(0, first)
    came, gradient = awaited((came, gradient))
    came = beside(came, jnp.zeros_like(came))
    (came, gradient, sums), (home, gradients) = jax.lax.scan(turn, (came, gradient, sums), jnp.arange(1, number - 1))
    last, more = compute(number - 1, unpack(number - 1, came[:, :, :capacity]))
    home = [home, came[None, :, :, capacity:], send(number - 2, gradient), send(number - 1, last)]
    gradients = jnp.concatenate([gradients, gradient[None], last[None]])
    return jnp.concatenate(home)[1:], gradients, optax.tree.add(sums, more)  # with the first vectors came nothing home


def loss(
    module: Recommender,
    objective: Objective,
    piece: Piece,
    drawn: Drawn,
    vectors: Float[Array, "S w d"],
    total_weight: Float[Array, ""],
) -> tuple[Float[Array, ""], Scalars]:
    """A micro-batch's part of the loss of the whole batch, from each shard's own copy of the vectors that it touches.

    `total_weight` is that of the whole batch.
    """
    batch, shards = piece.batch, len(vectors)
    grouped = lambda x: x.reshape(shards, -1, *x.shape[1:])  # noqa: E731
    inputs = jax.vmap(gather_rows)(vectors, piece.items_at).reshape(*batch.item_ids.shape, -1)
    states = module.read(inputs, batch.layout, train=True)
    targets, weight = batch.at_supervised(batch.targets), batch.weight()
    given = step_negatives(objective, piece.log_q, batch, targets, drawn.ids, drawn.at)
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
        piece.targets_at,
        grouped(weight),
        given,
    )
    # Each is a mean over its shard's supervised positions.
    share = grouped(weight).sum(axis=1) / jnp.maximum(total_weight, 1)
    total = jnp.sum(share * losses)
    return total, {"loss": total, **{name: jnp.sum(share * value) for name, value in extra.items()}}
