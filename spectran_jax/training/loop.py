"""The training loop: set-up, data, initialisation, step, evaluation, checkpoint, in that order."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spectran_jax import data, evaluation, objectives
from spectran_jax.config import Config
from spectran_jax.errors import InputError, Interrupted, RunError
from spectran_jax.metrics import metrics_from_ranks
from spectran_jax.progress import TrainingProgress
from spectran_jax.training import optimizer as optimizers
from spectran_jax.training import partitioning
from spectran_jax.training.checkpoints import Checkpoints, abstract_like
from spectran_jax.training.setup import Setup
from spectran_jax.training.signals import StopRequest
from spectran_jax.training.step import (
    Frozen,
    TrainState,
    init_state,
    make_diagnostics,
    make_rank_step,
    make_table,
    make_train_step,
)
from spectran_jax.training.workdir import MetricsLog

LOG_EVERY = 50
"""Steps between two training lines of metrics.jsonl."""
SELECTION_METRIC = "ndcg@20"


@dataclasses.dataclass
class Record:
    """What a resumed loop must know besides the state: JSON values, saved with every checkpoint."""

    data: Any = None
    """State of the data iterator."""
    best_value: float = -1.0
    best_step: int = 0
    stale: int = 0
    """Readings of the validation set since the best."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """Losses since the last training line."""
    seconds: float = 0.0
    """Time spent in the loop, over all starts."""


class Phases:
    """Wall-clock seconds of the loop by phase. A step runs while the host goes on, so its time shows where it is awaited."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def training(self) -> float:
        """Seconds of input, transfer and steps."""
        return sum(self.seconds.get(name, 0.0) for name in ("input", "transfer", "step"))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run: each is compiled once."""

    train_step: Callable[..., Any]
    table: Callable[..., Any]
    rank_step: Callable[..., Any]
    diagnostics: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What the loop hands to the summary."""

    params: Any
    """The parameters that were best on validation, on the devices."""
    initial_params: Any
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


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Updates until `--epochs` or `--max_steps`, whichever comes first."""
    steps = config.training.epochs * steps_per_epoch
    return min(steps, config.training.max_steps) if config.training.max_steps else steps


def exhausted(record: Record, patience: int) -> bool:
    """Whether validation has not become better for `patience` readings; 0 is never."""
    return 0 < patience <= record.stale


def train(
    setup: Setup, workdir: Path, stop: StopRequest, announce: Callable[[Any, int], None] = lambda params, step: None
) -> Trained:
    """Trains until the end, patience or a stop request; resumes from `workdir` where it holds a checkpoint.

    Args:
      setup: data, model and mesh.
      workdir: an owned work directory (see `workdir.locked`).
      stop: the signals to heed between two steps.
      announce: called once with the parameters and the step to start from.

    Raises:
      Interrupted: after saving, where a signal asked to stop.
      RunError: where the loss becomes NaN, or a save fails; the last sound checkpoint is kept.
    """
    config, mesh = setup.config, setup.mesh
    training = config.training

    # Data.
    batches = data.train_iterator(
        setup.split.train,
        config.data,
        batch_size=training.batch_size,
        seed=training.seed,
        row_multiple=mesh.shape["data"],
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        epochs=training.epochs,
    )
    per_epoch = batches.steps_per_epoch
    total = total_steps(config, per_epoch)
    positions = batches.positions / per_epoch
    valid = data.eval_batches(
        setup.split.valid, config.data, training.eval_batch_size, filter_seen=training.filter_seen
    )

    # Functions and initial state, each compiled once, with shardings from the one table.
    optimizer = optimizers.build_optimizer(config.optimizer, total)
    schedule = optimizers.learning_rate_schedule(config.optimizer, total)
    objective = objectives.build(config.objective, num_candidates=len(setup.frozen.trained_ids))
    frozen = setup.place()
    init = lambda f: init_state(setup.model, optimizer, f, training.seed, config.data.max_length)  # noqa: E731
    shapes = jax.eval_shape(init, frozen)
    shardings = partitioning.state_shardings(mesh, shapes)
    state: TrainState = jax.jit(init, out_shardings=shardings)(frozen)
    initial_params = jax.tree.map(np.asarray, jax.device_get(state.params))
    replicated = partitioning.replicated(mesh)
    programs = Programs(
        train_step=jax.jit(
            make_train_step(setup.model, objective, optimizer, schedule),
            donate_argnums=0,
            out_shardings=(shardings, replicated),
        ),
        table=jax.jit(make_table(setup.model), out_shardings=partitioning.sharding(mesh, "item", "embed")),
        rank_step=jax.jit(make_rank_step(setup.model), out_shardings=replicated),
        diagnostics=jax.jit(make_diagnostics(setup.model), out_shardings=replicated),
    )
    phases = Phases()

    # Resume.
    checkpoints = Checkpoints(workdir / "checkpoints")
    record = Record()
    restored = checkpoints.restore(abstract_like(shapes, shardings))
    step = 0
    if restored is not None:
        step, state, saved = restored
        if saved["data"] != setup.dataset.digest:
            raise InputError(f"{workdir} was trained on other data than its files hold now; take another --workdir.")
        record = Record(**saved["loop"])
        batches.set_state(record.data)
    log = MetricsLog(workdir / "metrics.jsonl", step)
    announce(state.params, step)

    def save() -> None:
        record.data = batches.get_state()
        with phases("checkpoint"), jax.transfer_guard("allow"):  # a checkpoint is a transfer that the loop asks for
            checkpoints.save(step, state, {"loop": dataclasses.asdict(record), "data": setup.dataset.digest})

    def flush(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
        """Fetches the metrics of the pending steps; stops at the first loss that is not finite."""
        fetched = jax.device_get(pending)
        for offset, metrics in enumerate(fetched):
            if not math.isfinite(metrics["loss"]):
                at = step - len(fetched) + offset + 1
                raise RunError(
                    f"The loss became {float(metrics['loss'])} at step {at}. Lower --learning_rate or raise "
                    f"--temperature; the last good checkpoint is kept in {workdir / 'checkpoints'}."
                )
        record.losses.extend(float(m["loss"]) for m in fetched)
        pending.clear()
        return {name: float(value) for name, value in fetched[-1].items()} if fetched else {}

    # Train.
    stop.deferred = True
    started = time.perf_counter() - record.seconds
    run_from = step
    pending: list[dict[str, jax.Array]] = []
    with TrainingProgress(total, per_epoch, start=step) as progress, jax.transfer_guard("disallow"):
        while step < total and not exhausted(record, training.patience):
            with phases("input"):
                batch = next(batches)
            with phases("transfer"):
                batch = partitioning.put_batch(mesh, batch)
            with phases("step"):
                state, metrics = programs.train_step(state, frozen, batch)
            step += 1
            pending.append(metrics)

            reading = step == total or (step % per_epoch == 0 and step // per_epoch % training.eval_every == 0)
            due = step % training.checkpoint_every == 0
            if step % LOG_EVERY == 0 or reading or due or stop.requested:
                with phases("step"):  # waits for the steps under way
                    latest = flush(pending)
                record.seconds = time.perf_counter() - started
                speed = positions * (step - run_from) / max(phases.training(), 1e-9)
                progress.update(step, loss=latest["loss"], examples_per_second=speed)
            if step % LOG_EVERY == 0 or reading:
                mean = sum(record.losses) / len(record.losses)
                record.losses.clear()
                log.write(
                    {"kind": "train", "step": step, "epoch": step / per_epoch, **latest, "loss": mean}
                    | {"examples_per_second": round(speed, 1)}
                )
            if reading:
                with phases("evaluation"):
                    table = programs.table(state.params, frozen)
                    ranks = evaluate(programs, state.params, frozen, table, valid, mesh)
                    values = metrics_from_ranks(ranks)
                    diagnosis = jax.device_get(programs.diagnostics(state.params, frozen))
                log.write(
                    {"kind": "valid", "step": step, "epoch": step / per_epoch, **values}
                    | {name: np.asarray(value).tolist() for name, value in diagnosis.items()}
                )
                better = values[SELECTION_METRIC] > record.best_value
                if better:
                    record.best_value, record.best_step, record.stale = values[SELECTION_METRIC], step, 0
                    with phases("checkpoint"), jax.transfer_guard("allow"):
                        checkpoints.save_best(step, state.params, {"metrics": values, "data": setup.dataset.digest})
                else:
                    record.stale += 1
                progress.validation(values, better)
            if due or reading or stop.requested:
                save()
            if stop.requested:
                checkpoints.wait()
                raise Interrupted(f"{stop.requested}: saved step {step}; start the same command again to go on.")
    stop.deferred = False
    with phases("checkpoint"):
        checkpoints.wait()

    # The best parameters, as they stand on disk.
    best = checkpoints.restore_best(abstract_like(shapes.params, shardings.params))
    checkpoints.close()
    log.close()
    if best is None:
        raise RunError(
            f"No sound checkpoint of the best parameters in {workdir / 'checkpoints'}; delete it and train again."
        )
    return Trained(
        params=best[1],
        initial_params=initial_params,
        frozen=frozen,
        programs=programs,
        best_step=best[0],
        steps=step,
        epochs=step / per_epoch,
        seconds=record.seconds,
        examples_per_second=positions * step / max(record.seconds, 1e-9),
        lines=log.lines,
        phases=phases.seconds,
    )


def evaluate(
    programs: Programs, params: Any, frozen: Frozen, table: jax.Array, batches: Any, mesh: jax.sharding.Mesh
) -> np.ndarray:
    """Ranks of all targets, int32 [users] in the order of the batches' users."""
    return evaluation.evaluate(
        lambda batch: programs.rank_step(params, frozen, table, batch),
        batches,
        put=lambda batch: partitioning.put_batch(mesh, batch),
    )
