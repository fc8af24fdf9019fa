"""The training loop: data, initial state, resume, then step, evaluation, checkpoint until the end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from spectran_jax.errors import InputError, RunError
from spectran_jax.progress import TrainingProgress
from spectran_jax.signals import StopRequest
from spectran_jax.training import consensus, memory
from spectran_jax.training.checkpoints import Checkpoints
from spectran_jax.training.cluster import Cluster
from spectran_jax.training.engine import Record, Run, watch
from spectran_jax.training.feed import Feed, training_batches
from spectran_jax.training.phases import Phases
from spectran_jax.training.profile import Profile
from spectran_jax.training.programs import Programs, build_programs
from spectran_jax.training.setup import Setup
from spectran_jax.training.standstill import Watchdog
from spectran_jax.training.step import Frozen
from spectran_jax.training.tensorboard import Summaries
from spectran_jax.training.timetable import Timetable, total_steps
from spectran_jax.training.workdir import MetricsLog, remove_results


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
      RunError: where the loss becomes NaN, or a save fails; a sound checkpoint is kept.
    """
    run = start(setup, workdir, cluster or Cluster())
    announce(run.state.params, run.step)
    timetable, phases, record, training = run.timetable, run.phases, run.record, setup.config.training
    to_validate = run.step == timetable.total > record.validated_step  # stopped there, when the end was further on
    if run.cluster.is_first and (to_validate or not run.ended):
        remove_results(workdir)
    per_epoch = run.batches.steps_per_epoch
    positions = run.batches.positions / per_epoch  # supervised, in a step

    stop.deferred = True
    vote = consensus.StopVote(run.cluster, stop, run.step + timetable.steps_at(run.step))
    started, resumed_at = time.perf_counter() - record.seconds, run.step
    feed = Feed(run.batches, setup.mesh, phases, step=run.step, steps_at=timetable.steps_at)
    profile = Profile(workdir / "profile", training.profile if run.cluster.is_first else 0, after=run.step)
    watchdog = Watchdog(run.cluster, phases)
    progress = TrainingProgress(timetable.total, per_epoch, start=run.step)
    with progress, jax.transfer_guard("disallow"), profile, watchdog:
        if to_validate:
            run.validate(progress)
            run.save()
        while not run.ended:
            metrics = run.dispatch(feed)
            with phases("step"):
                watchdog.begin(metrics)
            feed.read_ahead()
            step = run.step
            profile.at(step, run.state)

            # Read once: a signal that comes later waits for the next step.
            stopping = vote.reached(step, timetable.steps_at(step))
            saving = timetable.saves(step) or stopping is not None
            if timetable.logs(step) or saving:
                latest = run.fetch()
                record.seconds = time.perf_counter() - started
                speed = positions * (step - resumed_at) / max(phases.training(), 1e-9)
                progress.update(step, loss=latest["loss"], examples_per_second=speed)
            if timetable.logs(step):
                latest["loss"] = sum(record.losses) / len(record.losses)
                record.losses.clear()
                run.write("train", latest | {"examples_per_second": round(speed, 1)})
            if timetable.validates(step):
                run.validate(progress)
            if saving:
                run.save()
            if stopping:
                run.leave(stopping)
        if run.out_of_patience and run.step < timetable.total:
            progress.stopped(
                f"Stopped at step {run.step:,} of {timetable.total:,}: no validation was better since step "
                f"{record.best_step:,} (--patience={training.patience})."
            )
    stop.deferred = False
    if stop.requested:  # too late for the loop
        run.leave(stop.requested)
    return finish(run, positions * run.step / max(record.seconds, 1e-9))


def start(setup: Setup, workdir: Path, cluster: Cluster) -> Run:
    """What a run works with, compiled where it must be, and its first state or the one to resume from."""
    config, batches = setup.config, training_batches(setup)
    total = total_steps(config, batches.steps_per_epoch)
    valid = setup.eval_batches(setup.split.valid)
    programs = build_programs(setup, total)
    memory.require(setup, programs.state)
    frozen = setup.place()

    summaries = Summaries(workdir / "tensorboard") if config.training.tensorboard and cluster.is_first else None

    # Initial state, or the one to resume from; never both at once.
    checkpoints = Checkpoints(workdir / "checkpoints", cluster)
    restored = checkpoints.restore(programs.state, setup.inputs_digest)
    if restored is not None:
        step, state, saved = restored
        record = Record.from_checkpoint(saved["loop"], workdir)
        if step > total:
            raise InputError(
                f"--workdir={workdir} is at step {step:,}, and --epochs or --max_steps end at {total:,}; give as many "
                "as the run has done, or another folder."
            )
        if step < total:
            record = record.without_end()
        if 0 < config.training.patience <= record.longest:
            raise InputError(
                f"--workdir={workdir} went on after {record.longest} validations that were no better, where "
                f"--patience={config.training.patience} ends; give more than that, or another folder."
            )
        batches.set_state(record.data)
    else:
        step, state, record = 0, programs.init(), Record(data=batches.get_state())
    run = Run(
        setup=setup,
        workdir=workdir,
        cluster=cluster,
        phases=Phases(),
        batches=batches,
        valid=valid,
        timetable=Timetable(total, batches.steps_per_epoch, config.training),
        programs=programs,
        frozen=frozen,
        checkpoints=checkpoints,
        log=MetricsLog(
            workdir / "metrics.jsonl", -1 if restored is None else step, also=summaries, writes=cluster.is_first
        ),
        state=state,
        step=step,
        record=record,
    )
    if restored is None:
        # The table is gone when this function returns, before training needs its place.
        table = programs.table(state.params, frozen)
        run.write("start", watch(programs, state.params, frozen, table))
    return run


def finish(run: Run, examples_per_second: float) -> Trained:
    """Waits for what is being saved, and takes the best parameters as they stand on disk."""
    with run.phases("checkpoint"):
        run.checkpoints.wait()
    params_like = run.programs.state.params
    del run.state
    best = run.checkpoints.restore_best(params_like, run.setup.inputs_digest, run.record.best_step)
    run.checkpoints.close()
    run.log.close()
    if best is None:
        folder = run.workdir / "checkpoints"
        raise RunError(f"{folder} holds no sound copy of the best parameters; train in a new folder.")
    return Trained(
        params=best[1],
        frozen=run.frozen,
        programs=run.programs,
        best_step=best[0],
        steps=run.step,
        epochs=run.epoch,
        seconds=run.record.seconds,
        examples_per_second=examples_per_second,
        lines=run.log.lines,
        phases=run.phases.seconds,
    )
