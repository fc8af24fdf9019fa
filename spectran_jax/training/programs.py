"""The functions of a run under jit, with shardings from the one table: each is compiled once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectran_jax import evaluation
from spectran_jax.data import EvalBatches
from spectran_jax.layout import TrainBatch
from spectran_jax.recommender import ItemTable
from spectran_jax.training import optimizer as optimizers
from spectran_jax.training import partitioning
from spectran_jax.training.inference import make_diagnostics, make_encode_chunk, make_rank_step
from spectran_jax.training.setup import DTYPES, Setup
from spectran_jax.training.step import (
    Frozen,
    Scalars,
    TrainState,
    init_state,
    make_train_step,
    make_train_steps,
)

_CHUNK_BYTES = 64 * 2**20
"""Of item rows that are encoded at once."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run compiles. `state` holds the shapes, dtypes and shardings of the training state."""

    state: TrainState
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Frozen, TrainBatch], tuple[TrainState, Scalars]]
    train_steps: Callable[[TrainState, Frozen, TrainBatch], tuple[TrainState, Scalars]]
    """The same over a leading axis of steps."""
    table: Callable[[Any, Frozen], ItemTable]
    rank_step: Callable[..., jax.Array]
    diagnostics: Callable[[Any, Frozen], dict[str, jax.Array]]
    gram: Callable[[ItemTable], tuple[jax.Array, jax.Array]]
    """Of the vectors that are scored: their sum [d] and their Gram matrix [d, d]."""
    mesh: jax.sharding.Mesh

    def rank(
        self, params: Any, table: ItemTable, batches: EvalBatches, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """0-based ranks of all targets, int32, in the order of the targets."""
        return evaluation.evaluate(
            lambda batch: self.rank_step(params, table, batch),
            batches,
            put=lambda batch: partitioning.put_batch(self.mesh, batch),
            progress=progress,
        )


def build_programs(setup: Setup, total_steps: int) -> Programs:
    """The programs of a run of `total_steps` updates; nothing is compiled until it is called."""
    config, mesh, model, objective = setup.config, setup.mesh, setup.model, setup.objective
    names = model.item_encoder.item_params
    optimizer = optimizers.build_optimizer(config.optimizer, total_steps, names, setup.plan.steps_per_epoch)
    schedule = optimizers.learning_rate_schedule(config.optimizer, total_steps)
    # Initial values depend on no item's rows, so one row of each array is enough, and nothing large is captured.
    one_row = {
        name: np.zeros_like(array[:1]) if name in model.item_encoder.item_arrays else array
        for name, array in (setup.frozen.item_encoder | setup.host_arrays).items()
    }

    def init() -> TrainState:
        dtype = DTYPES[config.encoder.table_dtype]
        frozen = {"item_encoder": one_row}
        seed, timed = config.training.seed, setup.timed
        return init_state(model, optimizer, seed, setup.plan.row_length, frozen, dtype, timed=timed)

    shapes = jax.eval_shape(init)
    shardings = partitioning.state_shardings(mesh, shapes, names)
    everywhere = partitioning.replicated(mesh)
    train_step = make_train_step(model, objective, optimizer, schedule, setup.touched)
    update = functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, everywhere))
    return Programs(
        state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        init=jax.jit(init, out_shardings=shardings),
        train_step=update(train_step),
        train_steps=update(make_train_steps(train_step)),
        table=build_table(setup),
        rank_step=jax.jit(make_rank_step(model), out_shardings=everywhere),
        diagnostics=jax.jit(make_diagnostics(model), out_shardings=everywhere),
        gram=jax.jit(_gram, out_shardings=everywhere),
        mesh=mesh,
    )


def build_table(setup: Setup) -> Callable[[Any, Frozen], ItemTable]:
    """`table(params, frozen)`: all item vectors, encoded some MiB of rows at a time."""
    model, items, mesh = setup.model, setup.model.item_encoder.num_items, setup.mesh
    dimension = setup.config.encoder.dimension
    width = sum(array[0].size for name, array in setup.item_arrays().items()) + 4 * dimension
    size = min(items, max(1, _CHUNK_BYTES // (4 * width)))
    shardings = partitioning.table_sharding(mesh)

    @functools.partial(jax.jit, out_shardings=shardings)
    def empty() -> ItemTable:
        return ItemTable(jnp.zeros((items, dimension)), jnp.zeros(items))

    encode_chunk = jax.jit(make_encode_chunk(model, size), donate_argnums=3, out_shardings=shardings)

    def table(params: Any, frozen: Frozen) -> ItemTable:
        made = empty()
        for start in range(0, items, size):
            start = min(start, items - size)  # the last chunk overlaps the one before it
            rows = {
                name: np.ascontiguousarray(array[start : start + size]) for name, array in setup.host_arrays.items()
            }
            at = np.int32(start)
            rows, at = jax.device_put((rows, at), partitioning.replicated(mesh))
            made = encode_chunk(params, frozen, rows, made, at)
        return made

    return table


def _gram(table: ItemTable) -> tuple[jax.Array, jax.Array]:
    vectors = table.vectors
    return vectors.sum(axis=0), jnp.matmul(vectors.T, vectors, precision="highest")
