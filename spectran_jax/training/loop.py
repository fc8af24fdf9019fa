"""The training loop: data, initial state, resume, then step, evaluation, checkpoint until the end."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spectran_jax import data
from spectran_jax.errors import Diverged, InputError, Interrupted, RunError
from spectran_jax.metrics import metrics_from_ranks
from spectran_jax.progress import TrainingProgress
from spectran_jax.recommender import ItemTable
from spectran_jax.signals import StopRequest
from spectran_jax.training import consensus, memory
from spectran_jax.training.checkpoints import Checkpoints
from spectran_jax.training.cluster import Cluster
from spectran_jax.training.feed import Feed, row_reader
from spectran_jax.training.phases import Phases
from spectran_jax.training.profile import Profile
from spectran_jax.training.programs import Programs, build_programs
from spectran_jax.training.setup import Setup
from spectran_jax.training.standstill import Watchdog
from spectran_jax.training.step import Frozen
from spectran_jax.training.tensorboard import Summaries
from spectran_jax.training.timetable import Timetable, total_steps
from spectran_jax.training.workdir import MetricsLog

SELECTION_METRIC = "ndcg@20"


@dataclasses.dataclass
class Record:
    """What a resumed loop must know besides the state: JSON values, saved with every checkpoint."""

    data: Any = None
    """State of the data iterator."""
    best_value: float = -1.0
    best_step: int = 0
    stale: int = 0
    """Validations since the best."""
    validated_step: int = 0
    """That of the last validation."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """Losses since the last training line."""
    seconds: float = 0.0
    """Time spent in the loop, over all starts."""

    def exhausted(self, patience: int) -> bool:
        """Whether validation has not become better for `patience` validations; 0 is never."""
        return 0 < patience <= self.stale


@dataclasses.dataclass(frozen=True)
class Trained:
    """What the loop hands to the summary."""

    params: Any
    """The parameters that were best on validation, on the devices."""
    frozen: Frozen
    programs: Programs
    best_step: int
    steps: int
    epochs: float
    seconds: float
    examples_per_second: float
    """Supervised positions a second of the loop, over all starts."""
    lines: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    phases: dict[str, float]
    """Seconds of this start by phase."""


def watch(programs: Programs, params: Any, frozen: Frozen, table: ItemTable) -> dict[str, Any]:
    """What the item encoder wants watched, and the singular values of the item vectors, as JSON values."""
    values = {name: value.tolist() for name, value in jax.device_get(programs.diagnostics(params, frozen)).items()}
    return values | {"item_singular_values": singular_values(programs, table, frozen)}


def singular_values(programs: Programs, table: ItemTable, frozen: Frozen) -> list[float]:
    """Of the centred vectors that are scored, of the items that training sees; descending, from their Gram matrix."""
    gram = np.asarray(jax.device_get(programs.gram(table, frozen.candidates)), np.float64)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)).tolist()


def train(
    setup: Setup,
    workdir: Path,
    stop: StopRequest,
    announce: Callable[[Any, int], None] = lambda params, step: None,
    cluster: Cluster | None = None,
) -> Trained:
    """Trains until the end, patience or a stop request; resumes from `workdir` where it holds a checkpoint.

    Args:
      setup: data, model and mesh.
      workdir: an owned work directory (see `workdir.locked`).
      stop: the signals to heed between two dispatches.
      announce: called once with the parameters and the step to start from.
      cluster: the processes of the run; this one alone if None.

    Raises:
      InputError: for a configuration that does not fit the data or the device, or a checkpoint of other data.
      Interrupted: after saving, where a signal asked to stop.
      RunError: where the loss becomes NaN, or a save fails; the last sound checkpoint is kept.
    """
    config, mesh, training = setup.config, setup.mesh, setup.config.training
    phases, cluster = Phases(), cluster or Cluster()

    # Data.
    batches = data.train_iterator(
        setup.split.train,
        setup.plan,
        seed=training.seed,
        epochs=training.epochs,
        share=setup.share,
        extend=row_reader(setup),
    )
    per_epoch = batches.steps_per_epoch
    positions_per_step = batches.positions / per_epoch
    total = total_steps(config, per_epoch)
    timetable = Timetable(total, per_epoch, training)
    valid = setup.eval_batches(setup.split.valid)

    # What is compiled, and what it reads.
    programs = build_programs(setup, total)
    memory.require(setup, programs.state)
    frozen = setup.place()
    step, record = 0, Record()

    # Initial state, or the one to resume from; never both at once.
    checkpoints = Checkpoints(workdir / "checkpoints", cluster)
    restored = checkpoints.restore(programs.state, setup.inputs_digest)
    if restored is not None:
        step, state, saved = restored
        record = Record(**saved["loop"])
        if step > total:
            raise InputError(f"--workdir={workdir} is at step {step:,}, and --epochs or --max_steps end at {total:,}.")
        batches.set_state(record.data)
    else:
        state = programs.init()
        record.data = batches.get_state()
    summaries = Summaries(workdir / "tensorboard") if training.tensorboard and cluster.is_first else None
    log = MetricsLog(
        workdir / "metrics.jsonl", -1 if restored is None else step, also=summaries, writes=cluster.is_first
    )
    if restored is None:
        table = programs.table(state.params, frozen)
        log.write({"kind": "start", "step": 0, "epoch": 0.0} | watch(programs, state.params, frozen, table))
        del table  # it would take its place beside the training state
    announce(state.params, step)

    def save() -> None:
        with phases("checkpoint"), jax.transfer_guard("allow"):  # a transfer that the loop asks for
            checkpoints.save(step, state, {"loop": dataclasses.asdict(record), "data": setup.inputs_digest})

    def fetch(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
        """The metrics of the newest step; stops at the first loss that is not finite."""
        for metrics in pending:  # waits for the steps under way, and each that ends is a sign of progress
            with phases("step"):
                jax.block_until_ready(metrics["loss"])
        fetched = jax.device_get(pending)
        losses = np.concatenate([np.atleast_1d(metrics["loss"]) for metrics in fetched])
        for at, loss in enumerate(losses, step - len(losses) + 1):
            if not math.isfinite(loss):
                checkpoints.wait()  # what is being saved is from before
                raise Diverged(
                    f"The loss became {float(loss)} at step {at}. Lower --learning_rate or raise "
                    f"--temperature; {checkpoints.kept()}."
                )
        record.losses.extend(float(loss) for loss in losses)
        pending.clear()
        latest = {name: float(np.atleast_1d(value)[-1]) for name, value in fetched[-1].items()}
        return {name: value for name, value in latest.items() if math.isfinite(value)}

    def validate(progress: TrainingProgress) -> None:
        with phases("evaluation"), progress.task("Validation", len(valid)) as ranked:
            table = programs.table(state.params, frozen)
            phases.move()
            read = metrics_from_ranks(programs.rank(state.params, table, valid, phases.moving(ranked)))
            # What decides on stopping is one process's, to the last bit.
            values = cluster.of_first(f"validation/{step}", functools.partial(dict, read))
            watched = watch(programs, state.params, frozen, table)
            del table
        place = {"kind": "valid", "step": step, "epoch": step / per_epoch}
        log.write(place | values | watched)
        record.validated_step = step
        better = values[SELECTION_METRIC] > record.best_value
        if better:
            record.best_value, record.best_step, record.stale = values[SELECTION_METRIC], step, 0
            with phases("checkpoint"), jax.transfer_guard("allow"):
                checkpoints.save_best(step, state.params, {"metrics": values, "data": setup.inputs_digest})
        else:
            record.stale += 1
        progress.validation(values, better)

    # Train.
    stop.deferred = True
    vote = consensus.StopVote(cluster, stop, step + timetable.steps_at(step))
    started, resumed_at = time.perf_counter() - record.seconds, step
    pending: list[dict[str, jax.Array]] = []
    feed = Feed(batches, mesh, phases, step=step, steps_at=timetable.steps_at)
    profile = Profile(workdir / "profile", training.profile if cluster.is_first else 0, after=step)
    watchdog = Watchdog(cluster, phases)
    with TrainingProgress(total, per_epoch, start=step) as progress, jax.transfer_guard("disallow"), profile, watchdog:
        if step == total > record.validated_step:  # stopped there, when the end was further on
            validate(progress)
            save()
        while step < total and not record.exhausted(training.patience):
            dispatch = feed.take()
            with phases("step"):
                run = programs.train_step if dispatch.steps == 1 else programs.train_steps
                state, metrics = run(state, frozen, dispatch.batch)
                watchdog.begin(metrics)
            step += dispatch.steps
            record.data = dispatch.state
            pending.append(metrics)
            feed.read_ahead()
            profile.at(step, state)

            # Read once: a signal that comes later waits for the next step.
            stopping = vote.reached(step, timetable.steps_at(step))
            saving = timetable.saves(step) or stopping is not None
            if timetable.logs(step) or saving:
                latest = fetch(pending)
                record.seconds = time.perf_counter() - started
                speed = positions_per_step * (step - resumed_at) / max(phases.training(), 1e-9)
                progress.update(step, loss=latest["loss"], examples_per_second=speed)
            if timetable.logs(step):
                latest["loss"] = sum(record.losses) / len(record.losses)
                record.losses.clear()
                place = {"kind": "train", "step": step, "epoch": step / per_epoch}
                log.write(place | latest | {"examples_per_second": round(speed, 1)})
            if timetable.validates(step):
                validate(progress)
            if saving:
                save()
            if stopping:
                with phases("checkpoint"):
                    checkpoints.wait()
                raise Interrupted(f"{stopping}: saved step {step}; start the same command again to go on.")
    stop.deferred = False
    if stop.requested:  # too late for the loop
        checkpoints.wait()
        raise Interrupted(f"{stop.requested}: saved step {step}; start the same command again to go on.")
    with phases("checkpoint"):
        checkpoints.wait()
    del state

    # The best parameters, as they stand on disk.
    best = checkpoints.restore_best(programs.state.params, setup.inputs_digest, record.best_step)
    checkpoints.close()
    log.close()
    if best is None:
        raise RunError(f"{workdir / 'checkpoints'} holds no sound copy of the best parameters; train in a new folder.")
    return Trained(
        params=best[1],
        frozen=frozen,
        programs=programs,
        best_step=best[0],
        steps=step,
        epochs=step / per_epoch,
        seconds=record.seconds,
        examples_per_second=positions_per_step * step / max(record.seconds, 1e-9),
        lines=log.lines,
        phases=phases.seconds,
    )
