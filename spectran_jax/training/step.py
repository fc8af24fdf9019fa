"""The pure functions that a run compiles: initialisation, one update, ranking, the item table.

Each takes all it needs as arguments and returns all it changes. `train_step(state, frozen, batch)` is the one
that a mesh shards, a benchmark times and a test compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict
from jaxtyping import Float, Int

from spectran_jax.evaluation import rank_targets
from spectran_jax.layout import EvalBatch, SequenceLayout, TrainBatch
from spectran_jax.negatives import exclude_history, exclude_positive, history_mass
from spectran_jax.objectives import Negatives, Objective
from spectran_jax.recommender import Recommender

Params = Any


class TrainState(flax.struct.PyTreeNode):
    """All that training changes; a pytree, saved whole."""

    step: Int[jax.Array, ""]
    """int32 updates done."""
    params: Params
    opt_state: optax.OptState
    key: Any
    """uint32 [2]: the run's key; each step folds its number in, so that no draw is made twice."""


class Frozen(NamedTuple):
    """All that training reads and never changes: an argument of every step, in no checkpoint."""

    item_encoder: dict[str, Any]
    """The frozen arrays of the item encoder, e.g. u [N, r] and sigma [r]."""
    sampler: dict[str, Any]
    """What the objective's sampler of negatives reads; empty without one."""
    candidates: Any
    """bool [N]: True for those items; the denominator of the full softmax."""

    def collection(self) -> dict[str, Any]:
        """The model's collection "frozen"."""
        return {"item_encoder": self.item_encoder}


def init_state(
    model: Recommender, optimizer: optax.GradientTransformation, frozen: Frozen, seed: int, max_length: int
) -> TrainState:
    """A new training state; run it under jit with output shardings, so that no host holds a whole table."""
    key, init_key = jax.random.split(jax.random.PRNGKey(seed))
    ones = jnp.ones((1, max_length), jnp.int32)
    layout = SequenceLayout(mask=ones > 0, segment=ones, position=ones * 0, timestamp=ones * 0)
    _, variables = model.apply(
        {"frozen": frozen.collection()}, ones * 0, layout, rngs={"params": init_key}, mutable=["params", "losses"]
    )
    params = variables["params"]
    params = params.unfreeze() if isinstance(params, FrozenDict) else params
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), key=key)


def make_train_step(
    model: Recommender, objective: Objective, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[TrainState, Frozen, TrainBatch], tuple[TrainState, dict[str, Float[jax.Array, ""]]]]:
    """The update `train_step(state, frozen, batch) -> (state, metrics)`: pure, for jit with `state` donated.

    Negatives and dropout depend on the seed and the step alone. Metrics are float32 scalars: loss, grad_norm,
    learning_rate, auxiliary losses of the item encoder by name, and what the objective reports.
    """

    def train_step(
        state: TrainState, frozen: Frozen, batch: TrainBatch
    ) -> tuple[TrainState, dict[str, Float[jax.Array, ""]]]:
        negative_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        targets = batch.targets.reshape(-1)
        weight = batch.layout.mask.reshape(-1).astype(jnp.float32)
        drawn = _draw(objective, negative_key, frozen, batch)

        def total_loss(params: Params) -> tuple[Float[jax.Array, ""], dict[str, Float[jax.Array, ""]]]:
            def forward(module: Recommender) -> tuple[Float[jax.Array, ""], dict[str, Float[jax.Array, ""]]]:
                states = module.states(batch.item_ids, batch.layout, train=True)
                states = states.reshape(-1, states.shape[-1])
                if drawn is None:
                    items, positive_ids, negatives = module.table(), targets, None
                else:
                    items = module.items(jnp.concatenate([targets, drawn.ids]), train=True)
                    positive_ids = jnp.arange(len(targets))
                    negatives = drawn._replace(ids=len(targets) + jnp.arange(len(drawn.ids)))
                return objective.loss(
                    states,
                    items,
                    positive_ids=positive_ids,
                    weight=weight,
                    negatives=negatives,
                    candidates=frozen.candidates,
                )

            (loss, extra), sown = model.apply(
                {"params": params, "frozen": frozen.collection()},
                rngs={"dropout": dropout_key},
                mutable=["losses"],
                method=forward,
            )
            auxiliary = {
                "/".join(str(getattr(k, "key", k)) for k in path if hasattr(k, "key")): value
                for path, value in jax.tree_util.tree_leaves_with_path(sown)
            }
            return loss + sum(auxiliary.values(), jnp.zeros(())), {"loss": loss, **extra, **auxiliary}

        grads, metrics = jax.grad(total_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "grad_norm": optax.global_norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def _draw(objective: Objective, key: jax.Array, frozen: Frozen, batch: TrainBatch) -> Negatives | None:
    """The negatives of an update, by their global ids; None for a loss over all items."""
    sampler = objective.sampler
    if sampler is None:
        return None
    targets, weight = batch.targets.reshape(-1), batch.layout.mask.reshape(-1).astype(jnp.float32)
    ids = sampler.draw(key, frozen.sampler, targets=targets, weight=weight)
    log_q = sampler.log_q(frozen.sampler, ids)
    log_q_of_target = sampler.log_q(frozen.sampler, batch.targets)
    if objective.mask_negatives == "history":
        excluded = exclude_history(batch.item_ids, batch.targets, batch.layout, ids).reshape(-1, len(ids))
        log_q_of_item = sampler.log_q(frozen.sampler, batch.item_ids)
        mass = history_mass(batch.item_ids, batch.targets, batch.layout, log_q_of_item, log_q_of_target)
    else:
        excluded, mass = exclude_positive(targets, ids), jnp.exp(log_q_of_target)
    return Negatives(ids, log_q, excluded, mass.reshape(-1))


def _apply(model: Recommender, params: Params, frozen: Frozen, *arguments: Any, **options: Any) -> Any:
    return model.apply({"params": params, "frozen": frozen.collection()}, *arguments, **options)


def make_table(model: Recommender) -> Callable[[Params, Frozen], Float[jax.Array, "N d"]]:
    """`table(params, frozen)`: the vectors that every ranking scores against, built once an evaluation."""

    def table(params: Params, frozen: Frozen) -> Float[jax.Array, "N d"]:
        return _apply(model, params, frozen, method=model.table)

    return table


def make_last_states(model: Recommender) -> Callable[[Params, Frozen, EvalBatch], Float[jax.Array, "B d"]]:
    """`last_states(params, frozen, batch)`: the user state after the newest item of each history."""

    def last_states(params: Params, frozen: Frozen, batch: EvalBatch) -> Float[jax.Array, "B d"]:
        states = _apply(model, params, frozen, batch.item_ids, batch.layout)
        return jnp.take_along_axis(states, batch.last[:, None, None], axis=1)[:, 0]

    return last_states


def make_rank_step(
    model: Recommender,
) -> Callable[[Params, Frozen, Float[jax.Array, "N d"], EvalBatch], Int[jax.Array, "B"]]:
    """`rank_step(params, frozen, table, batch)`: 0-based rank of each target among the whole catalogue."""
    last_states = make_last_states(model)

    def rank_step(
        params: Params, frozen: Frozen, table: Float[jax.Array, "N d"], batch: EvalBatch
    ) -> Int[jax.Array, "B"]:
        seen = batch.seen if batch.seen.shape[1] else None
        return rank_targets(last_states(params, frozen, batch), table, batch.targets, seen)

    return rank_step


def make_diagnostics(model: Recommender) -> Callable[[Params, Frozen], dict[str, jax.Array]]:
    """`diagnostics(params, frozen)`: what the item encoder wants watched, at each reading of the validation set."""

    def diagnostics(params: Params, frozen: Frozen) -> dict[str, jax.Array]:
        return _apply(model, params, frozen, method=model.diagnostics)

    return diagnostics
