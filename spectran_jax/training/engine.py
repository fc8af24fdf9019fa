"""A run under way: where it stands, and what it does at a step, a validation and a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from spectran_jax import data
from spectran_jax.errors import Diverged, InputError, Interrupted
from spectran_jax.metrics import SELECTION_METRIC, metrics_from_ranks
from spectran_jax.progress import TrainingProgress
from spectran_jax.recommender import ItemTable
from spectran_jax.training.checkpoints import Checkpoints
from spectran_jax.training.cluster import Cluster
from spectran_jax.training.feed import Feed
from spectran_jax.training.phases import Phases
from spectran_jax.training.programs import Programs
from spectran_jax.training.setup import Setup
from spectran_jax.training.standstill import while_files_change
from spectran_jax.training.step import Frozen, TrainState
from spectran_jax.training.timetable import Timetable
from spectran_jax.training.workdir import MetricsLog

_VALIDATIONS = ("best_value", "best_step", "stale", "longest", "validated_step")
"""Fields of a record that a validation changes."""


@dataclasses.dataclass
class Record:
    """What a resumed loop must know besides the state: JSON values, saved with every checkpoint."""

    data: Any = None
    """State of the data iterator."""
    best_value: float = -1.0
    best_step: int = 0
    stale: int = 0
    """Validations since the best, after the warm-up."""
    longest: int = 0
    """The most that `stale` was before the last validation: a run of less `--patience` would have ended there."""
    validated_step: int = 0
    """That of the last validation."""
    before_end: dict[str, Any] | None = None
    """What it said of validations before the last one, where that was due to the end of the run alone."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """Losses since the last training line."""
    seconds: float = 0.0
    """Time spent in the loop, over all starts."""

    @classmethod
    def from_checkpoint(cls, values: dict[str, Any], workdir: Path) -> Record:
        """What a checkpoint in `workdir` holds of it; raises `InputError` for one of a later version."""
        if unknown := sorted(values.keys() - {field.name for field in dataclasses.fields(cls)}):
            raise InputError(
                f"--workdir={workdir} holds a run of another version of this library, whose record differs "
                f"({unknown[0]}); go on with that version, or train in another folder."
            )
        return cls(**values)

    def validations(self) -> dict[str, Any]:
        """What it says of validations."""
        return {name: getattr(self, name) for name in _VALIDATIONS}

    def without_end(self) -> Record:
        """That of a run which goes beyond its old end: as if it had never been to end there."""
        return dataclasses.replace(self, **(self.before_end or {}), before_end=None)


@dataclasses.dataclass
class Run:
    """A run under way: where it stands, and what it works with."""

    setup: Setup
    cluster: Cluster
    workdir: Path
    phases: Phases
    batches: data.TrainIterator
    valid: data.EvalBatches
    timetable: Timetable
    programs: Programs
    frozen: Frozen
    checkpoints: Checkpoints
    log: MetricsLog
    state: TrainState
    step: int
    """Updates done."""
    record: Record
    pending: list[dict[str, jax.Array]] = dataclasses.field(default_factory=list)
    """Metrics of dispatches that were not fetched yet."""
    compiled: set[int] = dataclasses.field(default_factory=set)
    """Numbers of steps of the dispatches so far: the first of each is compiled."""

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.step / self.batches.steps_per_epoch

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or patience is."""
        return self.step >= self.timetable.total or self.out_of_patience

    @property
    def out_of_patience(self) -> bool:
        """Whether validation has not become better for `--patience` validations; 0 is never."""
        return 0 < self.setup.config.training.patience <= self.record.stale

    def dispatch(self, feed: Feed) -> dict[str, jax.Array]:
        """Starts the next updates, one or several, and gives their metrics, which may take a while to come."""
        dispatch = feed.take()
        with self.phases("step" if dispatch.steps in self.compiled else "compilation"):
            update = self.programs.train_step if dispatch.steps == 1 else self.programs.train_steps
            self.state, metrics = update(self.state, self.frozen, dispatch.batch)
        self.compiled.add(dispatch.steps)
        self.step += dispatch.steps
        self.record.data = dispatch.state
        self.pending.append(metrics)
        return metrics

    def fetch(self) -> dict[str, float]:
        """The metrics of the newest step; stops at the first loss that is not finite."""
        for metrics in self.pending:  # waits for the steps under way, and each that ends is a sign of progress
            with self.phases("step"):
                jax.block_until_ready(metrics["loss"])
        fetched = jax.device_get(self.pending)
        losses = np.concatenate([np.atleast_1d(metrics["loss"]) for metrics in fetched])
        for at, loss in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(loss):
                with self._saving():
                    self.checkpoints.wait()  # what is being saved is from before
                raise Diverged(
                    f"The loss became {float(loss)} at step {at}. Lower --learning_rate or raise "
                    f"--temperature; {self.checkpoints.kept()}."
                )
        self.record.losses.extend(float(loss) for loss in losses)
        self.pending.clear()
        return {name: float(np.atleast_1d(value)[-1]) for name, value in fetched[-1].items()}

    def validate(self, progress: TrainingProgress) -> None:
        """Ranks the validation targets, writes a line, and saves the parameters where they are the best so far."""
        with self.phases("evaluation"), progress.task("Validation", len(self.valid)) as ranked:
            table = self.programs.table(self.state.params, self.frozen)
            self.phases.move()
            ranks = self.programs.rank(self.state.params, table, self.valid, self.phases.moving(ranked))
            # What decides on stopping is one process's, to the last bit.
            read = functools.partial(metrics_from_ranks, ranks)
            values = self.cluster.of_first(f"validation/{self.step}", lambda: dict(read()))
            watched = watch(self.programs, self.state.params, self.frozen, table)
            del table
        self.write("valid", values | watched)
        record, value = self.record, values[SELECTION_METRIC]
        with self._saving():
            self.checkpoints.drop_best_after(record.best_step)  # of an old end that the run went beyond
        record.before_end = None if self.timetable.regular(self.step) else record.validations()
        record.validated_step = self.step
        record.longest = max(record.longest, record.stale)
        better = value > record.best_value
        if better:
            record.best_value, record.best_step, record.stale = value, self.step, 0
            with self._saving():
                about = {"metrics": values, "data": self.setup.inputs_digest}
                self.checkpoints.save_best(self.step, self.state.params, about)
        elif self.step > self.setup.config.optimizer.warmup_steps:  # before, little can become better
            record.stale += 1
        progress.validation(values, better)

    def save(self) -> None:
        """Starts a checkpoint of the state, with the record."""
        with self._saving():
            about = {"loop": dataclasses.asdict(self.record), "data": self.setup.inputs_digest}
            self.checkpoints.save(self.step, self.state, about)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """The phase of what saves, or waits for what is being saved."""
        changing = while_files_change(self.workdir / "checkpoints", self.cluster, self.phases)
        with self.phases("checkpoint"), changing, jax.transfer_guard("allow"):  # transfers that the loop asks for
            yield

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl, without what is not finite, which JSON has no number for."""
        finite = {name: value for name, value in values.items() if np.isfinite(value).all()}
        self.log.write({"kind": kind, "step": self.step, "epoch": self.epoch} | finite)

    def leave(self, reason: str) -> NoReturn:
        """Raises `Interrupted` when all that was saved is on disk."""
        with self._saving():
            self.checkpoints.wait()
        raise Interrupted(f"{reason}: saved step {self.step}; start the same command again to go on.")


def watch(programs: Programs, params: Any, frozen: Frozen, table: ItemTable) -> dict[str, Any]:
    """What the item encoder wants watched, and the singular values of the item vectors, as JSON values."""
    values = {name: value.tolist() for name, value in jax.device_get(programs.diagnostics(params, frozen)).items()}
    return values | {"item_singular_values": singular_values(programs, table, frozen)}


def singular_values(programs: Programs, table: ItemTable, frozen: Frozen) -> list[float]:
    """Of the centred vectors that are scored, of the items that training sees; descending, from their Gram matrix.

    NaN where that is not finite.
    """
    gram = np.asarray(jax.device_get(programs.gram(table, frozen.candidates)), np.float64)
    if not np.isfinite(gram).all():
        return [math.nan] * len(gram)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)).tolist()
