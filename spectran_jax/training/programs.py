"""The functions of a run under jit, with shardings from the one table: each is compiled once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from spectran_jax import evaluation
from spectran_jax.data import EvalBatches
from spectran_jax.recommender import ItemTable, Recommender
from spectran_jax.training import item_table, partitioning
from spectran_jax.training import optimizer as optimizers
from spectran_jax.training.catalogue import has_item_rows
from spectran_jax.training.setup import DTYPES, Setup
from spectran_jax.training.sharded_step import make_sharded_train_step
from spectran_jax.training.step import (
    Frozen,
    Params,
    Step,
    TrainState,
    init_state,
    make_train_step,
    make_train_steps,
    pmapped,
)


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run compiles. `state` holds the shapes, dtypes and shardings of the training state."""

    state: TrainState
    init: Callable[[], TrainState]
    train_step: Step
    train_steps: Step
    """The same over a leading axis of steps."""
    table: item_table.TableBuilder
    rank_step: Callable[..., jax.Array]
    diagnostics: Callable[[Any, Frozen], dict[str, jax.Array]]
    gram: Callable[[ItemTable, jax.Array], jax.Array]
    """See `centred_gram`."""
    mesh: jax.sharding.Mesh

    def rank(
        self, params: Any, table: ItemTable, batches: EvalBatches, progress: Callable[[int], None] | None = None
    ) -> Int[np.ndarray, "U"]:
        """0-based ranks of all targets, int32, in the order of the targets."""
        return evaluation.evaluate(lambda batch: self.rank_step(params, table, batch), batches, self.mesh, progress)


def build_programs(setup: Setup, total_steps: int) -> Programs:
    """The programs of a run of `total_steps` updates; nothing is compiled until it is called."""
    config, mesh, model, objective = setup.config, setup.mesh, setup.model, setup.objective
    names = model.item_encoder.item_params
    optimizer = optimizers.build_optimizer(
        config.optimizer, total_steps, names, steps_per_epoch=setup.plan.steps_per_epoch
    )
    optimizer = _of_first_copy(optimizer, mesh, names if setup.access.cut else ())
    schedule = optimizers.learning_rate_schedule(config.optimizer, total_steps)
    one_row = model.item_encoder.one_row(setup.frozen.item_encoder | setup.host_arrays)  # nothing large is captured

    def init() -> TrainState:
        dtype = DTYPES[config.encoder.table_dtype]
        frozen = {"item_encoder": one_row}
        seed, timed = config.training.seed, setup.timed
        return init_state(model, optimizer, seed, setup.plan.row_length, frozen, dtype, timed=timed)

    shapes = jax.eval_shape(init)
    shardings = partitioning.state_shardings(mesh, shapes, names)

    @functools.partial(jax.jit, out_shardings=shardings.params)
    def init_params() -> Params:
        return init().params

    @functools.partial(jax.jit, out_shardings=shardings.replace(params=None))
    def init_others() -> TrainState:
        return init().replace(params=None)

    def start() -> TrainState:
        # One after the other: what random numbers take while they are drawn is free again before the moments are there.
        params = jax.block_until_ready(init_params())
        return init_others().replace(params=params)

    everywhere = partitioning.replicated(mesh)
    clip_norm = config.optimizer.clip_norm
    train_steps = None
    if config.training.parallelism == "pmap":
        local = make_train_step(model, objective, optimizer, schedule, setup.touched, clip_norm, axis="data")
        train_step = pmapped(local, mesh, "data")
        train_steps = pmapped(make_train_steps(local), mesh, "data", steps=True)
    elif setup.exchange is not None:
        train_step = make_sharded_train_step(model, objective, optimizer, schedule, setup.exchange, clip_norm)
    else:
        train_step = make_train_step(model, objective, optimizer, schedule, setup.touched, clip_norm)
    options = compiler_options(mesh, 0 if setup.exchange is None else len(setup.exchange.lists))
    update = functools.partial(
        jax.jit, donate_argnums=0, out_shardings=(shardings, everywhere), compiler_options=options
    )
    return Programs(
        state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        init=start,
        train_step=update(train_step),
        train_steps=update(train_steps or make_train_steps(train_step)),
        table=build_table(setup),
        rank_step=jax.jit(item_table.make_rank_step(model, setup.access), out_shardings=everywhere),
        diagnostics=jax.jit(make_diagnostics(model), out_shardings=everywhere),
        gram=jax.jit(centred_gram, out_shardings=everywhere),
        mesh=mesh,
    )


def _of_first_copy(
    optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, cut: Sequence[str]
) -> optax.GradientTransformation:
    """The optimiser over gradients of which all devices have one copy (`partitioning.of_first_copy`).

    Rows of the parameters named in `cut` lie on one device each, and have no copies.
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        one = lambda path, grad: grad if has_item_rows(path, cut) else partitioning.of_first_copy(mesh, grad)  # noqa: E731
        return optimizer.update(jax.tree_util.tree_map_with_path(one, grads), state, params)

    return optax.GradientTransformation(optimizer.init, update)


def compiler_options(mesh: jax.sharding.Mesh, lists: int) -> dict[str, bool]:
    """Of an update that exchanges so many lists of items: what its compiler is to be told beside the program.

    With several, a TPU's compiler is to let them travel while the step computes. On v5e slices of more than 16 chips
    every all-to-all blocks: the compiler refuses others ("not supported on limited ICI").
    """
    device = mesh.devices.flat[0]
    blocks = device.device_kind in ("TPU v5 lite", "TPU v5e") and mesh.size > 16
    if device.platform != "tpu" or lists < 2 or blocks:
        return {}
    return {"xla_tpu_enable_async_all_to_all": True, "xla_tpu_force_async_all_to_all": True}


def build_table(setup: Setup) -> item_table.TableBuilder:
    """What makes the table of all item vectors of a run."""
    return item_table.table_builder(setup.model, setup.access, setup.frozen.item_encoder, setup.host_arrays)


def make_diagnostics(model: Recommender) -> Callable[[Params, Frozen], dict[str, jax.Array]]:
    """`diagnostics(params, frozen)`: what the item encoder wants watched, at each validation."""

    def diagnostics(params: Params, frozen: Frozen) -> dict[str, jax.Array]:
        values: Any = model.apply({"params": params, "frozen": frozen.collection()}, method=model.diagnostics)
        return values

    return diagnostics


def centred_gram(table: ItemTable, candidates: Bool[jax.Array, "N"]) -> Float[jax.Array, "d d"]:
    """The Gram matrix of the vectors that are scored, less their mean.

    Of the items that training sees alone: an encoder without text knows nothing of the others, and their zeros would
    make a direction of their own.
    """
    seen = candidates[:, None]

    def less_its_mean(x: Float[jax.Array, "N d"]) -> Float[jax.Array, "N d"]:
        mean = jnp.sum(jnp.where(seen, x, 0), axis=0) / jnp.maximum(jnp.sum(candidates), 1)
        return jnp.where(seen, x - mean, 0)

    # Twice, and before the product: where vectors collapse their spread is small beside the mean, and what rounding
    # leaves of the mean would pass for it.
    centred = less_its_mean(less_its_mean(table.vectors))
    return jnp.matmul(centred.T, centred, precision="highest")
