"""The update of a model whose item tables are cut over the devices: `step.make_train_step` with an exchange inside.

The owners of rows encode them, vectors travel to the shards of the batch that read them, gradients of vectors travel
home, and the optimiser runs where the rows lie (`exchange.py`). All else, from the negatives to the loss, is what one
device computes, cut along the batch: the same seed and global batch give the same numbers on every mesh.

The traffic is that of vectors of d numbers, whatever a row holds beside them: coordinates u and moments stay at home.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from spectran_jax.gather import gather_rows
from spectran_jax.layout import TrainBatch
from spectran_jax.objectives import History, Negatives, Objective
from spectran_jax.recommender import Recommender
from spectran_jax.training import catalogue, exchange
from spectran_jax.training.optimizer import clip
from spectran_jax.training.step import (
    Frozen,
    Params,
    Scalars,
    Step,
    TrainState,
    step_history,
    step_keys,
    step_negatives,
    touched_items,
)


class Owned(NamedTuple):
    """What the owners hold of the items of one round, [D C, ...] for arrays of one row an item."""

    served: exchange.Served
    params: Params
    arrays: dict[str, Any]
    """The collection "frozen"."""


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The rounds of one step's exchange: the first carries all requests in all but unlucky steps, others the rest."""

    part: Recommender
    """The model, over the rows of a round."""
    sizes: exchange.Sizes
    requests: exchange.Requests
    arrays: dict[str, Any]
    """The frozen arrays of the item encoder."""
    dropout: jax.Array
    """Key of the encoders' dropout."""

    def owned(self, params: Params, round_number: Int[Array, ""] | int) -> Owned:
        """What the owners hold of the items of a round."""
        encoder, served = self.part.item_encoder, exchange.serve(self.sizes, self.requests, round_number)
        frozen = {"item_encoder": self.arrays}
        arrays = exchange.take(self.sizes, frozen, served, encoder.item_arrays, as_stored=True)
        return Owned(served, exchange.take(self.sizes, params, served, encoder.item_params), arrays)

    def deliver(self, params: Params, owned: Owned, round_number: Int[Array, ""] | int) -> Float[Array, "S w d"]:
        """The vectors of a round's items where the shards of the batch read them, zero where another round's go.

        `params` are those of `owned`, by themselves as a gradient goes to them.
        """
        encode = lambda module: module.item_encoder.encode(module.item_encoder.rows(None), train=True)  # noqa: E731
        variables = {"params": params, "frozen": owned.arrays}
        vectors: Any = self.part.apply(variables, rngs={"dropout": self.dropout}, method=encode)
        vectors = vectors.reshape(self.sizes.mesh.size, self.sizes.received, -1)
        return exchange.deliver(self.sizes, self.requests, owned.served, vectors, round_number)

    def pull_back(
        self, params: Params, round_number: Int[Array, ""] | int, gradient: Float[Array, "S w d"]
    ) -> tuple[Owned, Params]:
        """What the owners hold of a round's items, and the gradient that goes home from the vectors delivered."""
        owned = self.owned(params, round_number)
        _, back = jax.vjp(lambda params: self.deliver(params, owned, round_number), owned.params)
        return owned, back(gradient)[0]

    def after_the_first(self, body: Callable[[Int[Array, ""], Any], Any], start: Any) -> Any:
        """`body(round, carry)` over all rounds but the first: none, as a rule."""
        step = lambda carry: (carry[0] + 1, body(carry[0], carry[1]))  # noqa: E731
        return jax.lax.while_loop(lambda carry: carry[0] < self.requests.rounds, step, (jnp.int32(1), start))[1]


def make_sharded_train_step(
    model: Recommender,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    sizes: exchange.Sizes,
    clip_norm: float = 0.0,
) -> Step:
    """`train_step(state, frozen, batch)` as `step.make_train_step` gives it, for tables that are cut over a mesh.

    Metrics have `exchange_rounds` beside the others: more than 1 where items of a step lie with few owners, which takes
    time and changes nothing else.

    Args:
      model: over the rows of the tables.
      objective: a sampled loss, with a sampler.
      optimizer: see `optimizer.build_optimizer`.
      schedule: the learning rate, for the log.
      sizes: see `exchange.plan`; its shards are the groups of the batch.
      clip_norm: global norm that gradients are clipped to; 0 does not clip.
    """
    names = model.item_encoder.item_params
    part = model.of_items(sizes.mesh.size * sizes.received)
    no_item = sizes.mesh.size * sizes.rows

    def train_step(state: TrainState, frozen: Frozen, batch: TrainBatch) -> tuple[TrainState, Scalars]:
        keys = step_keys(state.key, state.step)
        sampler = objective.sampler
        assert sampler is not None
        targets = batch.at_supervised(batch.targets)
        drawn = sampler.draw(keys.negatives, frozen.sampler, targets=targets, weight=batch.weight())
        found, requests = exchange.request(sizes, _touched(sizes, batch, drawn, no_item))
        rounds = Rounds(part, sizes, requests, frozen.item_encoder, keys.dropout)

        # Vectors come to the shards: the first round's inside of what is differentiated, those of others beside it.
        first = rounds.owned(state.params, 0)
        shape = jax.eval_shape(rounds.deliver, first.params, first, 0)

        def fetch(round_number: Int[Array, ""], delivered: Float[Array, "S w d"]) -> Float[Array, "S w d"]:
            owned = rounds.owned(state.params, round_number)
            return delivered + rounds.deliver(owned.params, owned, round_number)

        later = rounds.after_the_first(fetch, jnp.zeros(shape.shape, shape.dtype))

        def total_loss(params: Params, later: Float[Array, "S w d"]) -> tuple[Float[Array, ""], Scalars]:
            delivered = rounds.deliver(params, first, 0) + later
            variables = {"params": params, "frozen": first.arrays}

            def loss(module: Recommender) -> tuple[Float[Array, ""], Scalars]:
                return _loss(module, objective, frozen.sampler, batch, found, drawn, delivered)

            value: Any = part.apply(variables, rngs={"dropout": keys.dropout}, method=loss)
            return value

        differentiate = jax.grad(total_loss, argnums=(0, 1), has_aux=True)
        (grads, vector_grads), metrics = differentiate(first.params, later)

        # The gradient of what has no rows is a sum over all rounds, and so is the norm that everything is clipped by.
        def add(round_number: Int[Array, ""], sums: tuple[Params, Array]) -> tuple[Params, Array]:
            rows, shared = _split(rounds.pull_back(state.params, round_number, vector_grads)[1], names)
            return jax.tree.map(jnp.add, sums[0], shared), sums[1] + optax.global_norm(rows) ** 2

        rows, shared = _split(grads, names)
        shared, square = rounds.after_the_first(add, (shared, optax.global_norm(rows) ** 2))
        norm = jnp.sqrt(square + optax.global_norm(shared) ** 2)

        # The owners update their rows, a round after the other.
        def update(owned: Owned, grads: Params, opt_state: Any) -> tuple[Params, Any]:
            opt_state = exchange.take(sizes, opt_state, owned.served, names)
            updates, opt_state = optimizer.update(clip(grads, norm, clip_norm), opt_state, owned.params)
            return optax.apply_updates(owned.params, updates), opt_state

        def write(tables: tuple[Params, Any], owned: Owned, changed: tuple[Params, Any]) -> tuple[Params, Any]:
            put = lambda tree, new: exchange.put(sizes, tree, new, owned.served, names, keys.rounding)  # noqa: E731
            return put(tables[0], changed[0]), put(tables[1], changed[1])

        def write_later(round_number: Int[Array, ""], tables: tuple[Params, Any]) -> tuple[Params, Any]:
            # From the tables as they are by now: no round before has touched these rows, and if those of `state` were
            # read here, the compiler would have to copy every table before it is written to.
            params = _with_rows(state.params, tables[0], names)
            opt_state = _with_rows(state.opt_state, tables[1], names)
            owned, grads = rounds.pull_back(params, round_number, vector_grads)
            params, opt_state = update(owned, grads, opt_state)
            # Parameters without rows have moved in the first round, with the gradients of all.
            changed = _with_rows(tables[0], params, names), _with_rows(tables[1], opt_state, names)
            return write(tables, owned, changed)

        tables = write((state.params, state.opt_state), first, update(first, _join(rows, shared), state.opt_state))
        params, opt_state = rounds.after_the_first(write_later, tables)
        metrics |= {
            "grad_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "exchange_rounds": requests.rounds.astype(jnp.float32),
        }
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def _touched(sizes: exchange.Sizes, batch: TrainBatch, drawn: Int[Array, "n"], no_item: int) -> Int[Array, "S m"]:
    """The ids that each shard of the batch touches, with repetitions; all of them score the same negatives."""
    own = touched_items(batch, drawn[:0], no_item).reshape(2, sizes.shards, -1)
    shared = jnp.broadcast_to(drawn, (sizes.shards, len(drawn)))
    return jnp.concatenate([own[0], own[1], shared], axis=1)


def _loss(
    module: Recommender,
    objective: Objective,
    sampler: dict[str, Any],
    batch: TrainBatch,
    found: Int[Array, "S w"],
    drawn: Int[Array, "n"],
    vectors: Float[Array, "S w d"],
) -> tuple[Float[Array, ""], Scalars]:
    """The loss of the whole batch from each shard's own copy of the vectors that it touches."""
    shards = len(found)
    grouped = lambda x: x.reshape(shards, -1, *x.shape[1:])  # noqa: E731
    at = jax.vmap(catalogue.place)
    rows, length = batch.item_ids.shape
    item_at = at(found, batch.item_ids.reshape(shards, -1))
    inputs = jax.vmap(gather_rows)(vectors, item_at).reshape(rows, length, -1)
    states = module.read(inputs, batch.layout, train=True)
    targets, weight = batch.at_supervised(batch.targets), batch.weight()
    drawn_at = at(found, jnp.broadcast_to(drawn, (shards, len(drawn))))
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
    share = grouped(weight).sum(axis=1)
    share = share / jnp.maximum(share.sum(), 1)
    loss = jnp.sum(share * losses)
    return loss, {"loss": loss, **{name: jnp.sum(share * value) for name, value in extra.items()}}


def _split(tree: Any, names: tuple[str, ...]) -> tuple[Any, Any]:
    """The leaves of one row an item, and the others; None in the place of what is not there."""
    nothing = jax.tree.map(lambda _: None, tree)
    return _with_rows(nothing, tree, names), _with_rows(tree, nothing, names)


def _with_rows(tree: Any, other: Any, names: tuple[str, ...]) -> Any:
    """The tree with the leaves of one row an item of another."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, row: row if catalogue.has_item_rows(path, names) else leaf,
        tree,
        other,
        is_leaf=lambda x: x is None,
    )


def _join(rows: Any, others: Any) -> Any:
    """Undoes `_split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, rows, others, is_leaf=lambda x: x is None)
