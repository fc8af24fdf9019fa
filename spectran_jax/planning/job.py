"""A training job by its sizes alone: the set-up and the programs of `training`, over a slice, with no data behind them.

Arrays with one row an item have one real row, broadcast: their shapes are those of the catalogue and they take no
memory. What is compiled is what training compiles, `programs.build_programs` of a `Setup`, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectran_jax import backbones, data, item_encoders
from spectran_jax.config import Config
from spectran_jax.config_checks import check
from spectran_jax.data.interactions import Dataset
from spectran_jax.errors import InputError
from spectran_jax.layout import EvalBatch, SequenceLayout, TrainBatch
from spectran_jax.recommender import ItemTable
from spectran_jax.spectral import Spectrum, sharded
from spectran_jax.spectral.sharded_route import block_rows
from spectran_jax.spectral.storage import DTYPES
from spectran_jax.synthetic import synthetic_inputs, training_split
from spectran_jax.text import TextEmbeddings
from spectran_jax.training import partitioning
from spectran_jax.training.programs import Programs, build_programs
from spectran_jax.training.setup import Setup, assemble

BEFORE_TRAINING = ("decomposition", "projection")
"""How the names of the programs begin that run while the arrays of training are not there."""

_REAL_ITEMS = 1024
"""Of the catalogue that the model is built from, before its rows are broadcast."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What decides a program beside the configuration."""

    num_items: int
    """N."""
    rank: int
    """r, components of the spectrum."""
    text_dimension: int
    """m, dimensions of the text embeddings."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The programs of a run, and the shapes that they are called with."""

    setup: Setup
    programs: Programs
    sizes: Sizes

    def lowered(self) -> dict[str, Callable[[], Any]]:
        """What lowers each program, by name."""
        programs, frozen = self.programs, self.setup.abstract()
        params, table = programs.state.params, self.item_table()
        builder = programs.table
        rows = {
            name: jax.ShapeDtypeStruct(
                (builder.size * builder.access.parts, *array.shape[1:]), array.dtype, sharding=builder.sharding
            )
            for name, array in builder.host_arrays.items()
        }
        start = jax.ShapeDtypeStruct((), jnp.int32, sharding=partitioning.replicated(self.setup.mesh))
        train_step: Any = programs.train_step
        encode: Any = builder.encode_chunk
        rank: Any = programs.rank_step
        return {
            "train step": lambda: train_step.lower(programs.state, frozen, self.batch()),
            "item table, a chunk": lambda: encode.lower(params, frozen, rows, table, start),
            "ranking, a batch": lambda: rank.lower(params, table, self.eval_batch()),
        } | (self._decomposition() if self.setup.spectrum is not None else {})

    def _decomposition(self) -> dict[str, Callable[[], Any]]:
        """Of float32 text in float32, the precision that a TPU has, a block of rows from every host at a time."""
        devices, m = self.setup.mesh.devices.reshape(-1), self.sizes.text_dimension
        spectrum = self.setup.config.spectrum
        made = sharded.programs(
            jax.sharding.Mesh(devices, ("row",)),
            normalize_rows=spectrum.normalize_rows,
            center=spectrum.center,
            dtype="float32",
        )
        hosts = len({device.process_index for device in devices})
        each = block_rows(m, np.dtype(np.float32), -(-self.sizes.num_items // hosts), len(devices) // hosts)
        shape = lambda sizes, where, dtype=np.float32: jax.ShapeDtypeStruct(sizes, dtype, sharding=where)  # noqa: E731
        abstract: Any = jax.eval_shape(lambda: made.start(m))
        sums = jax.tree.map(lambda x: shape(x.shape, made.rows, x.dtype), abstract)
        x, part = shape((each * hosts, m), made.rows), shape((each * hosts,), made.rows, np.bool_)
        row, weights = shape((m,), made.whole), shape((m, self.sizes.rank), made.whole)
        accumulate: Any = made.accumulate
        solve: Any = made.solve
        project: Any = made.project
        return {
            "decomposition, a block": lambda: accumulate.lower(sums, x, part, row),
            "decomposition, eigenvectors": lambda: solve.lower(sums, row),
            "projection, a block": lambda: project.lower(x, part, row, weights),
        }

    def item_table(self) -> ItemTable:
        """Shapes of the table of an evaluation."""
        shape: Any = jax.eval_shape(self.programs.table.empty)
        sharding = self.programs.table.sharding
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shape)

    def batch(self) -> TrainBatch:
        """Shapes of the batch of an update."""
        setup, plan = self.setup, self.setup.plan
        shape = (plan.rows_per_step, plan.row_length)
        ids = np.broadcast_to(np.int32(0), shape)
        supervised = np.broadcast_to(np.int32(0), (plan.groups, plan.group_positions))
        layout = self._layout(shape)._replace(user=ids if plan.has_beginnings else None)
        batch = TrainBatch(ids, ids, layout, supervised)
        return _with(batch, partitioning.batch_shardings(setup.mesh, batch))

    def eval_batch(self) -> EvalBatch:
        """Shapes of a batch of users to rank for."""
        setup = self.setup
        users = setup.config.training.eval_batch_size
        ids = np.broadcast_to(np.int32(0), (users, setup.plan.row_length))
        one = np.broadcast_to(np.int32(0), users)
        seen = ids[:, : setup.config.data.max_length if setup.config.training.filter_seen else 0]
        batch = EvalBatch(ids, self._layout(ids.shape), one, one, one, seen)
        return _with(batch, partitioning.batch_shardings(setup.mesh, batch))

    def _layout(self, shape: tuple[int, int]) -> SequenceLayout:
        ids, flags = np.broadcast_to(np.int32(0), shape), np.broadcast_to(False, shape)
        return SequenceLayout(flags, ids, ids, ids if self.setup.timed else None, flags if self.setup.masked else None)


def build(config: Config, sizes: Sizes, devices: list[Any]) -> Job:
    """The job of a configuration over a slice: histories that fill `max_length`, one a row.

    Args:
      config: as training reads it; where the data comes from is not looked at.
      sizes: of the catalogue and its text.
      devices: of the slice, in order.

    Raises:
      InputError: for a configuration out of range, or one that does not fit the sizes or the slice.
    """
    check(config)
    mesh = partitioning.training_mesh(config.training, devices)
    if config.objective.loss != "softmax" and sizes.num_items < config.objective.negatives:
        raise InputError(f"--num_items={sizes.num_items} is below --negatives={config.objective.negatives}.")
    if config.spectrum.spectrum_memory != "device":
        raise InputError(
            f"--spectrum_memory={config.spectrum.spectrum_memory} is for one process, and a slice has several hosts; "
            "leave the flag out: the spectrum is cut over all chips."
        )
    if config.spectrum.max_rank:
        raise InputError(f"--max_rank={config.spectrum.max_rank}: a plan is given the rank itself; take --rank.")
    if sizes.rank > sizes.text_dimension:
        raise InputError(f"--rank={sizes.rank} is above --text_dimension={sizes.text_dimension}.")
    setup = assemble(config, *_inputs(config, sizes), mesh)
    # One epoch more or less changes the schedule of the learning rate and not the program.
    setup = _broadcast(setup, sizes.num_items)
    return Job(setup, build_programs(setup, setup.plan.steps_per_epoch), sizes)


def _inputs(config: Config, sizes: Sizes) -> tuple[Dataset, data.Split, TextEmbeddings, Spectrum | None]:
    """A catalogue of a few items, and the histories of one batch."""
    items = min(sizes.num_items, max(_REAL_ITEMS, config.objective.negatives, sizes.rank + 1))
    dataset, embeddings, spectrum = synthetic_inputs(items, sizes.text_dimension, 2)
    rank, dtype = min(sizes.rank, spectrum.u.shape[1]), DTYPES[config.spectrum.spectrum_dtype]
    spectrum = dataclasses.replace(
        spectrum,
        u=np.zeros((items, rank), dtype),
        sigma=spectrum.sigma[:rank],
        basis=spectrum.basis[:, :rank],
        u_scale=np.ones(rank, np.float32) if dtype == np.int8 else None,
    )
    users, length = config.training.batch_size, config.data.max_length + 1
    count = users * length
    reads_time = backbones.lookup(config.backbone.backbone).reads_time
    train = data.Histories(
        offsets=np.arange(users + 1, dtype=np.int64) * length,
        items=np.broadcast_to(np.int32(0), count),
        timestamps=np.broadcast_to(np.int64(0), count) if reads_time else None,
    )
    dataset = dataclasses.replace(dataset, user_ids=range(users), histories=train)
    reads_spectrum = item_encoders.lookup(config.encoder.item_encoder).needs_spectrum
    return dataset, training_split(items, train), embeddings, spectrum if reads_spectrum else None


def _broadcast(setup: Setup, num_items: int) -> Setup:
    """The set-up with N items in place of those that it was built from, for devices that are not here."""

    def wide(array: np.ndarray) -> np.ndarray:
        return np.broadcast_to(array[:1], (num_items, *array.shape[1:]))

    def by_row(arrays: dict[str, np.ndarray], field: str = "item_encoder") -> dict[str, np.ndarray]:
        return {k: wide(x) if k in setup.item_arrays[field] else x for k, x in arrays.items()}

    return dataclasses.replace(
        setup,
        dataset=dataclasses.replace(setup.dataset, item_ids=range(num_items)),
        model=setup.model.of_items(partitioning.table_rows(num_items)).portable(),
        frozen=setup.frozen._replace(
            item_encoder=by_row(setup.frozen.item_encoder),
            sampler=by_row(setup.frozen.sampler, "sampler"),
            candidates=wide(setup.frozen.candidates),
        ),
        host_arrays=by_row(setup.host_arrays),
    )


def _with(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
