"""Batches on their way to the device: read and copied ahead, several at a time where a dispatch runs several steps."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectran_jax.data.pipeline import TrainIterator, train_iterator
from spectran_jax.layout import ItemRows, TrainBatch
from spectran_jax.training import catalogue, partitioning
from spectran_jax.training.phases import Phases
from spectran_jax.training.setup import Setup
from spectran_jax.training.step import run_keys, step_keys, touched_items

_AHEAD = 2
"""Dispatches whose batches are on the device before the first of them begins."""


class Dispatch(NamedTuple):
    """What one call of the device works on."""

    steps: int
    """Updates. With more than one, the leaves of the batch have a leading axis of steps."""
    batch: TrainBatch
    state: Any
    """Of the data iterator, after these batches."""


class Feed:
    """Takes batches off the iterator ahead of the loop; what is saved of the iterator is where the loop stands."""

    def __init__(
        self,
        batches: TrainIterator,
        mesh: jax.sharding.Mesh,
        phases: Phases,
        *,
        step: int,
        steps_at: Callable[[int], int],
    ) -> None:
        """Starts nothing yet.

        Args:
          batches: at the place of `step`.
          mesh: where batches go.
          phases: gets the seconds of input and transfer.
          step: updates done.
          steps_at: updates of the dispatch that follows so many; 0 at the end.
        """
        self._batches, self._mesh, self._phases = batches, mesh, phases
        self._step, self._steps_at = step, steps_at
        self._ready: collections.deque[Dispatch] = collections.deque()

    def take(self) -> Dispatch:
        """The next dispatch; waits for it where it was not read ahead."""
        if not self._ready:
            self._read()
        return self._ready.popleft()

    def read_ahead(self) -> None:
        """Reads and copies what comes next, while the device is at work."""
        while len(self._ready) < _AHEAD and self._steps_at(self._step):
            self._read()

    def _read(self) -> None:
        steps = self._steps_at(self._step)
        with self._phases("input"):
            read = [next(self._batches) for _ in range(steps)]
            batch = read[0] if steps == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *read)
            state = self._batches.get_state()
        with self._phases("transfer"):
            self._ready.append(Dispatch(steps, partitioning.put_batch(self._mesh, batch, steps=steps > 1), state))
        self._step += steps


def training_batches(setup: Setup, epochs: int | None = None) -> TrainIterator:
    """The batches of a run, from its first on; of `--epochs` epochs unless told otherwise."""
    training = setup.config.training
    return train_iterator(
        setup.split.train,
        setup.plan,
        seed=training.seed,
        epochs=training.epochs if epochs is None else epochs,
        share=setup.share,
        extend=row_reader(setup),
    )


def row_reader(setup: Setup) -> Callable[[int, TrainBatch], TrainBatch] | None:
    """Adds to batch i the rows of `setup.host_arrays` that its step touches; None where the host keeps none.

    The negatives of a step depend on the seed, its number and, `in_batch`, on its batch alone, so the host draws the
    same ones ahead of time, by the same function. It runs in the threads that build batches.
    """
    if not setup.host_arrays:
        return None
    sampler, size, items = setup.objective.sampler, setup.touched, setup.dataset.num_items
    no_item = setup.access.rows
    assert size is not None
    key, _ = run_keys(setup.config.training.seed)
    host = _host_device()
    arrays, key = jax.device_put((setup.frozen.sampler, key), host)

    @jax.jit
    def touched(arrays: Any, key: Any, step: Any, batch: TrainBatch) -> Any:
        drawn = jnp.zeros(0, jnp.int32)
        if sampler is not None:
            targets, weight = batch.at_supervised(batch.targets), batch.weight()
            drawn = sampler.draw(step_keys(key, step).negatives, arrays, targets=targets, weight=weight)
        return catalogue.distinct(touched_items(batch, drawn, no_item), size, no_item)

    def read(step: int, batch: TrainBatch) -> TrainBatch:
        ids = jax.device_get(touched(arrays, key, *jax.device_put((np.int32(step), batch), host)))
        known = np.minimum(ids, items - 1)
        return batch._replace(rows=ItemRows(ids, {name: array[known] for name, array in setup.host_arrays.items()}))

    return read


def _host_device() -> jax.Device:
    """A CPU device beside the accelerators; the default device where JAX was told of no CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]
