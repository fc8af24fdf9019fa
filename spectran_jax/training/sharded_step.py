"""The update of a model whose item tables are cut over the devices: `step.make_train_step` with an exchange inside.

The owners of rows encode them, vectors travel to the shards of the batch that read them, gradients of vectors travel
home, and the optimiser runs where the rows lie (`exchange.py`). All else, from the negatives to the loss, is what one
device computes, cut along the batch: the same seed and global batch give the same numbers on every mesh.

The traffic is that of vectors of d numbers, whatever a row holds beside them: coordinates u and moments stay at home.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from spectran_jax.layout import TrainBatch
from spectran_jax.objectives import Objective
from spectran_jax.recommender import Recommender
from spectran_jax.training import catalogue, exchange, micro_batches
from spectran_jax.training.micro_batches import Lists, piece_of, stacked, take_turns
from spectran_jax.training.optimizer import clip
from spectran_jax.training.step import (
    Frozen,
    Params,
    Scalars,
    Step,
    TrainState,
    step_keys,
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

    def encode(self, params: Params, owned: Owned) -> Lists:
        """The vectors of a round's items at their owners, packed for those who ask.

        `params` are those of `owned`, by themselves as a gradient goes to them.
        """
        encode = lambda module: module.item_encoder.encode(module.item_encoder.rows(None), train=True)  # noqa: E731
        variables = {"params": params, "frozen": owned.arrays}
        vectors: Any = self.part.apply(variables, rngs={"dropout": self.dropout}, method=encode)
        vectors = vectors.reshape(self.sizes.mesh.size, self.sizes.received, -1)
        return stacked(exchange.pack(self.sizes, owned.served, vectors))

    def fetch(self, params: Params, owned: Owned, round_number: Int[Array, ""] | int) -> Lists:
        """Those vectors where the shards of the batch read them, zero where another round's go."""
        arriving = stacked(exchange.arrivals(self.sizes, self.requests, round_number))
        packed = self.encode(params, owned)
        # In a loop: a program of thousands of devices is long for each exchange that it holds.
        own = jax.lax.map(lambda of_list: exchange.deliver(self.sizes, *of_list), (arriving[0], packed[0]))
        return own, *(exchange.deliver(self.sizes, *each) for each in zip(arriving[1:], packed[1:], strict=True))

    def pull_back(self, params: Params, round_number: Int[Array, ""] | int, gradients: Lists) -> tuple[Owned, Params]:
        """What the owners hold of a round's items, and the gradient that goes home from the vectors delivered."""
        owned = self.owned(params, round_number)
        _, back = jax.vjp(lambda params: self.fetch(params, owned, round_number), owned.params)
        return owned, back(gradients)[0]

    def look_up(self, first: exchange.Served, array: Float[Array, "N"]) -> Float[Array, "S W"]:
        """A number of each item of all lists, side by side, from its owner, as the vectors come; some for no item.

        Args:
          first: what owners deal with in the first round.
          array: cut as item tables are.
        """
        sizes = self.sizes

        def of_round(served: exchange.Served, at: Int[Array, ""] | int) -> Float[Array, "S W"]:
            packed = exchange.pack(sizes, served, exchange.take_numbers(sizes, array, served))
            # One exchange for all lists.
            came = exchange.swap(sizes, jnp.concatenate(packed, axis=2))
            of_lists = exchange.per_list(came, sizes.capacities, axis=2)
            lists = zip(exchange.arrivals(sizes, self.requests, at), of_lists, strict=True)
            return jnp.concatenate([exchange.unpack(sizes, *each)[..., 0] for each in lists], axis=1)

        later = lambda at, came: came + of_round(exchange.serve(sizes, self.requests, at), at)  # noqa: E731
        return self.after_the_first(later, of_round(first, 0))

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

    A batch of several groups a shard is a step of as many micro-batches: the same update, from the sum of their
    gradients. The vectors of one can travel while another is computed with.

    Metrics have `exchange_rounds` beside the others: more than 1 where items of a step lie with few owners, which takes
    time and changes nothing else.

    Args:
      model: over the rows of the tables.
      objective: a sampled loss, with a sampler.
      optimizer: see `optimizer.build_optimizer`.
      schedule: the learning rate, for the log.
      sizes: see `exchange.plan`, for `micro_batches.touched_at_most`.
      clip_norm: global norm that gradients are clipped to; 0 does not clip.
    """
    names = model.item_encoder.item_params
    part = model.of_items(sizes.mesh.size * sizes.received)
    no_item = sizes.mesh.size * sizes.rows

    def train_step(state: TrainState, frozen: Frozen, batch: TrainBatch) -> tuple[TrainState, Scalars]:
        keys = step_keys(state.key, state.step)
        sampler = objective.sampler
        assert sampler is not None
        targets, weight = batch.at_supervised(batch.targets), batch.weight()
        drawn = sampler.draw(keys.negatives, frozen.sampler, targets=targets, weight=weight)
        batches = micro_batches.cut(batch, sizes.shards)
        number = len(batches.item_ids)
        found, requests = exchange.request(sizes, micro_batches.touched(batches, sizes.shards, drawn, no_item))
        rounds = Rounds(part, sizes, requests, frozen.item_encoder, keys.dropout)

        # Vectors of later rounds come at once; those of the first are encoded here, and travel in turn, below.
        first = rounds.owned(state.params, 0)

        # Log-probabilities come to the shards as vectors do. Looked up plainly, those of the whole batch would be a sum
        # over all devices; those of the negatives, which all share, are.
        side_by_side = sampler.log_q(
            frozen.sampler,
            exchange.item_ids(sizes, jnp.concatenate(found, axis=1)),
            lambda array, _: rounds.look_up(first.served, array),
        )
        listed = exchange.per_list(side_by_side, [each.wanted for each in sizes.lists])
        dealt, log_q = functools.partial(exchange.dealt, sizes), sampler.log_q(frozen.sampler, drawn)
        pieces, negatives = micro_batches.placed(batches, drawn, found, dealt, listed, log_q)

        packed, encoded = jax.vjp(lambda params: rounds.encode(params, first), first.params)
        nothing = [jnp.zeros((*ids.shape, packed[0].shape[-1]), packed[0].dtype) for ids in found]

        def fetch_later(round_number: Int[Array, ""], came: Lists) -> Lists:
            owned = rounds.owned(state.params, round_number)
            return optax.tree.add(came, rounds.fetch(owned.params, owned, round_number))

        later = rounds.after_the_first(fetch_later, stacked(nothing))
        arriving = stacked(exchange.arrivals(sizes, requests))
        held, others = _split(first.params, names)
        shared = tuple(exchange.deliver(sizes, *of_list) for of_list in zip(arriving[1:], packed[1:], strict=True))
        shared = optax.tree.add(shared, later[1:])

        def compute(at: Int[Array, ""] | int, came: Float[Array, "S w d"]) -> tuple[Array, Any]:
            def loss_of(others: Params, came: Array, shared: tuple[Array, ...]) -> tuple[Array, Scalars]:
                variables = {"params": _join(held, others), "frozen": first.arrays}
                vectors = jnp.concatenate([came, *shared], axis=1)
                loss = lambda module: micro_batches.loss(  # noqa: E731
                    module, objective, piece_of(pieces, at), negatives, vectors, weight.sum()
                )
                value: Any = part.apply(variables, rngs={"dropout": keys.dropout}, method=loss)
                return value

            differentiate = jax.grad(loss_of, argnums=(0, 1, 2), has_aux=True)
            (of_others, own, of_shared), metrics = differentiate(others, came, shared)
            return own, (of_others, optax.tree.cast(of_shared, jnp.float32), metrics)

        home, own_grads, (of_others, shared_grads, metrics) = take_turns(
            packed[0],
            functools.partial(exchange.swap, sizes),
            lambda at, got: exchange.unpack(sizes, arriving[0][at], got) + later[0][at],
            compute,
            lambda at, gradient: exchange.pack_gradient(sizes, arriving[0][at], gradient, sizes.lists[0].capacity),
        )
        vector_grads = (own_grads, *optax.tree.cast(shared_grads, own_grads.dtype))
        shared_home = (
            exchange.send_home(sizes, arrive, gradient, each.capacity)
            for arrive, gradient, each in zip(arriving[1:], vector_grads[1:], sizes.lists[number:], strict=True)
        )
        rows, of_encoder = _split(encoded((home, *shared_home))[0], names)
        grads = optax.tree.add(of_others, of_encoder)

        # The gradient of what has no rows is a sum over all rounds, and so is the norm that everything is clipped by.
        def add(round_number: Int[Array, ""], sums: tuple[Params, Array]) -> tuple[Params, Array]:
            rows, shared = _split(rounds.pull_back(state.params, round_number, vector_grads)[1], names)
            return optax.tree.add(sums[0], shared), sums[1] + optax.global_norm(rows) ** 2

        grads, square = rounds.after_the_first(add, (grads, optax.global_norm(rows) ** 2))
        norm = jnp.sqrt(square + optax.global_norm(grads) ** 2)

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

        tables = write((state.params, state.opt_state), first, update(first, _join(rows, grads), state.opt_state))
        params, opt_state = rounds.after_the_first(write_later, tables)
        metrics |= {
            "grad_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "exchange_rounds": requests.rounds.astype(jnp.float32),
        }
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


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
