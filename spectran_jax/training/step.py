"""The pure functions that training compiles: initialisation and one update (`programs.py` has all of them).

Each takes all it needs as arguments and returns all it changes. `train_step(state, frozen, batch)` is the one
that a mesh shards, a benchmark times and a test compares.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int

from spectran_jax import negatives
from spectran_jax.gather import gather_rows
from spectran_jax.item_encoders import StepView
from spectran_jax.layout import SequenceLayout, TrainBatch
from spectran_jax.objectives import History, Negatives, Objective
from spectran_jax.recommender import Recommender
from spectran_jax.training import catalogue
from spectran_jax.training.optimizer import clip

Params = Any
Scalars = dict[str, Float[jax.Array, ""]]


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
    """The frozen arrays of the item encoder, e.g. u [N, r] and sigma [r]; without those that the host keeps."""
    sampler: dict[str, Any]
    """What the sampler of negatives draws from; empty where there is none."""
    candidates: Bool[Any, "N"]
    """True for the items that appear in training: the denominator of the full softmax."""

    def collection(self) -> dict[str, Any]:
        """The model's collection "frozen"."""
        return {"item_encoder": self.item_encoder}

    def of_items(self, model: Recommender, ids: Int[Array, "U"] | None, rows: dict[str, Any]) -> dict[str, Any]:
        """The collection "frozen" over the items `ids` (over all if None).

        Args:
          model: whose encoder says which arrays have one row an item.
          ids: int32; an id of N gives some row.
          rows: arrays that the host keeps, over these items already.
        """
        taken = catalogue.take(self.collection(), ids, model.item_encoder.item_arrays, as_stored=True)
        return {"item_encoder": taken["item_encoder"] | rows}


Step = Callable[[TrainState, Frozen, TrainBatch], tuple[TrainState, Scalars]]
"""An update, or several: the state is donated, the frozen arrays are not."""


class StepKeys(NamedTuple):
    """The random keys of one step, from the run's key and the step's number alone."""

    negatives: Any
    dropout: Any
    rounding: Any


def run_keys(seed: int) -> tuple[Any, Any]:
    """The run's key, that all steps fold their number into, and the key of the initialisation."""
    key, init_key = jax.random.split(jax.random.PRNGKey(seed))
    return key, init_key


def step_keys(key: Any, step: Int[Array, ""] | int) -> StepKeys:
    """The keys of the update that follows `step` others."""
    return StepKeys(*jax.random.split(jax.random.fold_in(key, step), 3))


def init_state(
    model: Recommender,
    optimizer: optax.GradientTransformation,
    seed: int,
    row_length: int,
    frozen: dict[str, Any],
    table_dtype: Any = jnp.float32,
    *,
    timed: bool = False,
) -> TrainState:
    """A new training state; run it under jit with output shardings, so that no host holds a whole table.

    Args:
      model: gives the parameters.
      optimizer: gives its state.
      seed: of the run.
      row_length: L.
      frozen: the collection "frozen"; of arrays with one row an item, any rows will do.
      table_dtype: how the item parameters are stored.
      timed: whether the data has timestamps; a backbone makes parameters for what it will read.
    """
    key, init_key = run_keys(seed)
    ones = jnp.ones((1, row_length), jnp.int32)
    times = ones * 0 if timed else None
    layout = SequenceLayout(mask=ones > 0, segment=ones, position=ones * 0, timestamp=times)
    _, variables = model.apply(
        {"frozen": frozen}, ones * 0, layout, rngs={"params": init_key}, mutable=["params"], method=model.create
    )
    params = variables["params"]
    params = params.unfreeze() if isinstance(params, FrozenDict) else params
    opt_state = optimizer.init(params)  # of the float32 parameters: moments stay float32
    params = catalogue.map_item_rows(lambda p: p.astype(table_dtype), model.item_encoder.item_params, params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, key=key)


def touched_items(batch: TrainBatch, negative_ids: Int[Array, "n"], num_items: int) -> Int[Array, "m"]:
    """The ids that a step touches, with repetitions: inputs, targets, negatives; N for none.

    A target is the next input or the last item of its history, so `plan.step_items` counts them all.
    """
    mask = batch.layout.mask
    ids = [jnp.where(mask, batch.items, num_items), jnp.where(mask, batch.targets, num_items)]
    return jnp.concatenate([x.reshape(-1) for x in (*ids, negative_ids)])


@dataclasses.dataclass(frozen=True)
class Peers:
    """The devices that share a step under `jax.pmap`; without an axis one does it all, and nothing is exchanged."""

    axis: str | None = None

    def number_rows(self, batch: TrainBatch) -> TrainBatch:
        """A device's rows, numbered as rows of the whole batch."""
        if self.axis is None:
            return batch
        numbers = batch.layout.row_numbers() + jax.lax.axis_index(self.axis) * len(batch.item_ids)
        return batch._replace(layout=batch.layout._replace(row=numbers))

    def gather(self, x: Array) -> Array:
        """The rows of all devices."""
        return x if self.axis is None else jax.lax.all_gather(x, self.axis, tiled=True)

    def sum(self, tree: Any) -> Any:
        """Over the devices."""
        return tree if self.axis is None else jax.lax.psum(tree, self.axis)

    def weigh(self, tree: Any, weight: Float[Array, "S"]) -> Any:
        """Means over this device's supervised positions, times its share of all of them: `sum` makes means of these."""
        if self.axis is None:
            return tree
        share = weight.sum() / jnp.maximum(jax.lax.psum(weight.sum(), self.axis), 1)
        return jax.tree.map(lambda x: share * x, tree)


def make_train_step(
    model: Recommender,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    touched: int | None = None,
    clip_norm: float = 0.0,
    axis: str | None = None,
) -> Step:
    """The update `train_step(state, frozen, batch) -> (state, metrics)`: pure, for jit with `state` donated.

    Negatives (but those of the batch) and dropout depend on the seed and the step alone. Metrics are float32 scalars:
    loss, grad_norm, learning_rate, auxiliary losses of the item encoder by name, and what the objective reports.

    Args:
      model: over the whole catalogue.
      objective: the loss and its sampler.
      optimizer: see `optimizer.build_optimizer`.
      schedule: the learning rate, for the log.
      touched: distinct items that a step touches at most; its cost follows them and not the catalogue (see
        `catalogue.py`). None takes every item, with dense gradients: for a loss over all items, or to compare.
      clip_norm: global norm that gradients are clipped to; 0 does not clip.
      axis: of `jax.pmap`, where a device is given its rows of the batch and whole tables. The numbers are the same.
    """
    num_items, names = model.item_encoder.num_items, model.item_encoder.item_params
    peers = Peers(axis)

    def train_step(state: TrainState, frozen: Frozen, batch: TrainBatch) -> tuple[TrainState, Scalars]:
        keys = step_keys(state.key, state.step)
        batch = peers.number_rows(batch)
        targets, weight = batch.at_supervised(batch.targets), batch.weight()
        sampler = objective.sampler
        drawn = jnp.zeros(0, jnp.int32)
        if sampler is not None:
            whole = {"targets": peers.gather(targets), "weight": peers.gather(weight)}
            drawn = sampler.draw(keys.negatives, frozen.sampler, **whole)

        # The items of this step as a catalogue of their own: `at` numbers them.
        ids, at = None, lambda these: these
        rows: dict[str, Any] = {}
        if batch.rows is not None:
            ids, rows = batch.rows.ids, batch.rows.arrays
        elif touched is not None:
            ids = catalogue.distinct(peers.gather(touched_items(batch, drawn, num_items)), touched, num_items)
        if ids is not None:
            at = functools.partial(catalogue.place, ids)
        part = model.of_items(num_items if ids is None else len(ids))
        params = catalogue.take(state.params, ids, names)
        opt_state = catalogue.take(state.opt_state, ids, names)
        arrays = frozen.of_items(model, ids, rows)
        item_at, positive_at = at(batch.item_ids), at(targets)
        sampled = None
        if sampler is not None:
            log_q = LogQ(*(sampler.log_q(frozen.sampler, ids) for ids in (batch.items, batch.targets, drawn)))
            sampled = step_negatives(objective, log_q, batch, targets, drawn, at(drawn))

        def total_loss(params: Params) -> tuple[Float[jax.Array, ""], Scalars]:
            def forward(module: Recommender) -> tuple[Float[jax.Array, ""], Scalars, Scalars]:
                encoder = module.item_encoder
                item_rows = encoder.rows(None)
                vectors = encoder.encode(item_rows, train=True)  # each item once, however often it stands in the batch
                inputs = gather_rows(vectors, item_at)
                states = module.read(inputs, batch.layout, train=True)
                given = sampled
                if sampled is not None and objective.history_negatives:
                    given = sampled._replace(history=step_history(module, batch, states, inputs))
                loss, extra = objective.loss(
                    batch.at_supervised(states),
                    module.scored(vectors),
                    positive_ids=positive_at,
                    weight=weight,
                    negatives=given,
                    candidates=frozen.candidates,
                )
                whole_at = item_at if batch.layout.hidden is None else at(batch.items)
                view = StepView(vectors, whole_at, batch.layout, states, positive_at, weight)
                return loss, extra, encoder.auxiliary(item_rows, view)

            made: Any = part.apply({"params": params, "frozen": arrays}, rngs={"dropout": keys.dropout}, method=forward)
            loss, extra, auxiliary = made
            total = loss + sum(auxiliary.values(), jnp.zeros(()))
            return peers.weigh((total, {"loss": loss, **extra, **auxiliary}), weight)

        grads, metrics = peers.sum(jax.grad(total_loss, has_aux=True)(params))
        norm = optax.global_norm(grads)
        updates, opt_state = optimizer.update(clip(grads, norm, clip_norm), opt_state, params)
        params = optax.apply_updates(params, updates)
        metrics |= {
            "grad_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        state = state.replace(
            step=state.step + 1,
            params=catalogue.put(state.params, params, ids, names, keys.rounding),
            opt_state=catalogue.put(state.opt_state, opt_state, ids, names, keys.rounding),
        )
        return state, metrics

    return train_step


class LogQ(NamedTuple):
    """float32 log-probabilities of what a step may exclude and of what it drew; on padding, any."""

    items: Float[Array, "B L"]
    """Of `TrainBatch.items`."""
    targets: Float[Array, "B L"]
    drawn: Float[Array, "n"]


def step_negatives(
    objective: Objective,
    log_q: LogQ,
    batch: TrainBatch,
    targets: Int[Array, "T"],
    drawn: Int[Array, "n"],
    drawn_at: Int[Array, "n"],
) -> Negatives:
    """What was drawn, with what does not count for each position."""
    if objective.mask_negatives == "history":
        excluded = batch.at_supervised(negatives.exclude_history(batch.items, batch.targets, batch.layout, drawn))
        mass = batch.at_supervised(
            negatives.history_mass(batch.items, batch.targets, batch.layout, log_q.items, log_q.targets)
        )
    else:
        excluded = negatives.exclude_positive(targets, drawn)
        mass = jnp.exp(batch.at_supervised(log_q.targets))
    return Negatives(ids=drawn_at, log_q=log_q.drawn, excluded=excluded, excluded_mass=mass)


def step_history(
    module: Recommender, batch: TrainBatch, states: Float[Array, "B L d"], inputs: Float[Array, "B L d"]
) -> History:
    """The items that each supervised position has seen, as negatives of its own."""
    seen = negatives.seen_items(batch.item_ids, batch.targets, batch.layout)
    states = jnp.where(batch.layout.mask[..., None], states, 0)  # padding may hold NaN, and 0 * NaN is NaN
    scores = jnp.einsum("bld,bkd->blk", states, module.scored(inputs))
    return History(batch.at_supervised(scores), batch.at_supervised(seen))


def make_train_steps(train_step: Step) -> Step:
    """Several updates in one dispatch: batches and metrics have a leading axis, one entry a step."""

    def train_steps(state: TrainState, frozen: Frozen, batches: TrainBatch) -> tuple[TrainState, Scalars]:
        return jax.lax.scan(lambda state, batch: train_step(state, frozen, batch), state, batches)

    return train_steps


def pmapped(train_step: Step, mesh: jax.sharding.Mesh, axis: str, *, steps: bool = False) -> Step:
    """`train_step`, made with this axis, over global arrays: `jax.pmap` over the mesh's devices, state replicated.

    Args:
      train_step: one update, or several.
      mesh: of one axis.
      axis: its name.
      steps: batches have a leading axis of steps.
    """
    mapped = jax.pmap(
        train_step,
        axis_name=axis,
        in_axes=(None, None, int(steps)),
        out_axes=(None, None),
        devices=list(mesh.devices.flat),
    )

    def split(leaf: Array) -> Array:
        lead = leaf.shape[: int(steps)]
        return leaf.reshape(*lead, mesh.size, -1, *leaf.shape[len(lead) + 1 :])

    def run(state: TrainState, frozen: Frozen, batch: TrainBatch) -> tuple[TrainState, Scalars]:
        return mapped(state, frozen, jax.tree.map(split, batch))

    return run
