"""The functions of a run under jit, with shardings from the one table: each is compiled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from spectran_jax import evaluation, objectives
from spectran_jax.data import EvalBatches
from spectran_jax.training import optimizer as optimizers
from spectran_jax.training import partitioning
from spectran_jax.training.setup import Setup
from spectran_jax.training.step import (
    Frozen,
    TrainState,
    init_state,
    make_diagnostics,
    make_rank_step,
    make_table,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run compiles. `state` holds the shapes, dtypes and shardings of the training state."""

    state: TrainState
    init: Callable[[Frozen], TrainState]
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    table: Callable[[Any, Frozen], jax.Array]
    rank_step: Callable[..., jax.Array]
    diagnostics: Callable[[Any, Frozen], dict[str, jax.Array]]
    mesh: jax.sharding.Mesh

    def rank(self, params: Any, frozen: Frozen, table: jax.Array, batches: EvalBatches) -> np.ndarray:
        """0-based ranks of all targets, int32, in the order of the targets."""
        return evaluation.evaluate(
            lambda batch: self.rank_step(params, frozen, table, batch),
            batches,
            put=lambda batch: partitioning.put_batch(self.mesh, batch),
        )


def build_programs(setup: Setup, total_steps: int) -> Programs:
    """The programs of a run of `total_steps` updates; nothing is compiled until it is called.

    Raises:
      InputError: for an unknown loss, or more negatives than trained items.
    """
    config, mesh, model = setup.config, setup.mesh, setup.model
    optimizer = optimizers.build_optimizer(config.optimizer, total_steps)
    schedule = optimizers.learning_rate_schedule(config.optimizer, total_steps)
    objective = objectives.build(config.objective, setup.split.item_counts)

    def init(frozen: Frozen) -> TrainState:
        return init_state(model, optimizer, frozen, config.training.seed, config.data.max_length)

    shapes = jax.eval_shape(init, setup.frozen)
    shardings = partitioning.state_shardings(mesh, shapes)
    everywhere = partitioning.replicated(mesh)
    return Programs(
        state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        init=jax.jit(init, out_shardings=shardings),
        train_step=jax.jit(
            make_train_step(model, objective, optimizer, schedule),
            donate_argnums=0,
            out_shardings=(shardings, everywhere),
        ),
        table=jax.jit(make_table(model), out_shardings=partitioning.sharding(mesh, "item", "embed")),
        rank_step=jax.jit(make_rank_step(model), out_shardings=everywhere),
        diagnostics=jax.jit(make_diagnostics(model), out_shardings=everywhere),
        mesh=mesh,
    )
