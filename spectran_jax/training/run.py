"""One run from configuration to report: what `experiments.train` calls."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from spectran_jax import data
from spectran_jax.cluster_flags import ALONE, ClusterOptions
from spectran_jax.config import LENGTH, Config
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError
from spectran_jax.progress import print_line, quiet, stderr_console
from spectran_jax.ranks import read_ranks
from spectran_jax.report import metrics_table, parameter_table, phase_table, words
from spectran_jax.report.terminal import print_table
from spectran_jax.signals import StopRequest
from spectran_jax.training import consensus, loop, partitioning, run_report, summary
from spectran_jax.training.cluster import Cluster
from spectran_jax.training.join import joined
from spectran_jax.training.notices import notices
from spectran_jax.training.runtime import configure_jax
from spectran_jax.training.setup import Setup, prepare
from spectran_jax.training.shares import rows_of_process
from spectran_jax.training.workdir import (
    locked,
    read_metrics,
    refuse_other_files,
    refuse_other_folder,
    refuse_other_run,
)
from spectran_jax.writing import write_arrays, write_json

_LOCK_SECONDS = 150.0
"""How long a restart waits for its folder: a server of files (NFS 4) keeps the lock of a host that vanished so long."""


def train_and_report(config: Config, workdir: Path | None, options: ClusterOptions = ALONE) -> dict[str, Any]:
    """Trains, evaluates and reports; resumes what `workdir` holds, and returns at once where it is finished.

    Args:
      config: everything that decides the run.
      workdir: folder of the run; gets config.json, metrics.jsonl, metrics.json, ranks.npz, report.html and
        checkpoints/. One folder for all processes.
      options: how this process finds the others of the run. Where there are others, an error ends the process.

    Returns:
      What metrics.json holds; see `summary.final_metrics`.

    Raises:
      InputError: bad input or configuration.
      RunError: a failure while running.
      Interrupted: saved on a signal.
    """
    if workdir is None:
        raise InputError("Name a folder for the run: --workdir=DIR.")
    check(config)
    configure_jax(config)
    with StopRequest() as stop, joined(options) as cluster, _owned(cluster, config, workdir):
        clock = time.perf_counter()
        setup = _prepare(cluster, config)
        phases = {"set-up": time.perf_counter() - clock}
        if cluster.is_first:
            refuse_other_files(workdir, config, setup.inputs_digest)
        metrics: dict[str, Any] | None = cluster.of_first("finished", lambda: finished(workdir, setup))
        if metrics is None:
            sets = cluster.of_first("evaluate", lambda: to_evaluate(workdir, setup))
            setup = dataclasses.replace(setup, config=config.replace(evaluate=sets))
            metrics = _run(setup, workdir, stop, phases, cluster)
        elif cluster.is_first:
            steps = words.count(metrics["train"]["steps"], "step")
            print_line(
                stderr_console(), f"The run in {workdir} has ended before, after {steps}: nothing is left to do."
            )
            metrics = _with_files_as_named(workdir, metrics, config)
        if cluster.is_first:
            if Config.from_dict(metrics["config"]).training.evaluate != config.training.evaluate:
                print_line(stderr_console(), f"The run in {workdir} keeps its results of validation and test.")
            print_table(metrics_table(metrics))
            for label, name in (("metrics", "metrics.json"), ("report", "report.html")):
                if (workdir / name).exists():
                    print(f"{label + ':':<8} {workdir / name}")
    return metrics


@contextlib.contextmanager
def _owned(cluster: Cluster, config: Config, workdir: Path) -> Iterator[None]:
    """The work directory, held by process 0 for all, of a run on which all processes agree."""
    with contextlib.ExitStack() as stack:
        if not cluster.is_first:
            stack.enter_context(quiet())
        if not cluster.alone:
            consensus.require_same_run(cluster, config)
        if cluster.is_first:
            refuse_other_folder(workdir)
            stack.enter_context(locked(workdir, patience=0 if cluster.alone else _LOCK_SECONDS))
            refuse_other_run(workdir, config)
        consensus.require_shared(cluster, workdir)
        consensus.share_compiled(cluster)
        yield


def _prepare(cluster: Cluster, config: Config) -> Setup:
    """The set-up: process 0 reads the input files, then all take what it prepared; what follows they share."""
    mesh = partitioning.training_mesh(config.training)
    rows_of_process(mesh, jax.process_index())  # refuses a mesh whose shards the processes don't hold evenly

    def load(config: Config) -> data.Dataset:
        if not cluster.is_first:
            return data.load(config, cluster.of_first("prepared", str))
        dataset = data.load(config)
        cluster.of_first("prepared", lambda: dataset.digest)
        return dataset

    setup = prepare(config, mesh, load)
    consensus.require_agreement(cluster, "inputs", {"the content of the input files (a digest)": setup.inputs_digest})
    return setup


def finished(workdir: Path, setup: Setup) -> dict[str, Any] | None:
    """metrics.json of a run that came to the end of this configuration on these very inputs, or None.

    None as well where results are missing or damaged: they are made again, of the best parameters.
    """
    found = _results(workdir, setup)
    if found is None or not setup.config.naming_files_as(found[1]).same_results(found[1]):
        return None
    metrics, held = found
    for name in summary.evaluated(held):
        if not isinstance(metrics.get(name), dict):
            return None
        try:
            read_ranks(workdir / "ranks.npz", name)
        except InputError:
            return None
    # A page alone is not worth to train anew.
    kept = (workdir / "report.html").is_file() or not any((workdir / "checkpoints" / "latest").glob("[0-9]*"))
    return metrics if kept else None


def _with_files_as_named(workdir: Path, metrics: dict[str, Any], config: Config) -> dict[str, Any]:
    """The results of a finished run, told of its files by their names in `config`: a study knows its runs by these."""
    held = Config.from_dict(metrics["config"])
    named = held.naming_files_as(config)
    if named == held:
        return metrics
    metrics = metrics | {"config": named.to_dict()}
    write_json(workdir / "config.json", named.to_dict())
    write_json(workdir / "metrics.json", metrics)
    return metrics


def to_evaluate(workdir: Path, setup: Setup) -> str:
    """What a run is to read at its end: also what it read when it came to this end before, so that no result goes."""
    asked, found = setup.config.training.evaluate, _results(workdir, setup)
    if found is None:
        return asked
    held = found[1]
    other = setup.config.naming_files_as(held).differences(held, LENGTH)
    return asked if other or held.training.evaluate == asked else "both"


def _results(workdir: Path, setup: Setup) -> tuple[dict[str, Any], Config] | None:
    """metrics.json, and the configuration in it, of a run on these very inputs; None for another version's, too."""
    metrics = read_metrics(workdir)
    if metrics is None or metrics.get("inputs") != setup.inputs_digest:
        return None
    try:
        return metrics, Config.from_dict(metrics["config"])
    except InputError:
        return None


def _run(setup: Setup, workdir: Path, stop: StopRequest, phases: dict[str, float], cluster: Cluster) -> dict[str, Any]:
    config, console = setup.config, stderr_console()

    def announce(params: Any, step: int) -> None:
        if cluster.is_first:  # not before the input is known to be good, and that of the checkpoints there
            write_json(workdir / "config.json", config.to_dict())
        for line in notices(setup) if cluster.is_first else ():
            print_line(console, line)
        print_table(parameter_table(summary.parameter_rows(params)), console)
        if step:
            print_line(console, f"Resuming from step {step:,}.")

    trained = loop.train(setup, workdir, stop, announce, cluster)
    phases |= trained.phases
    clock = time.perf_counter()
    metrics, ranked, arrays = summary.final_metrics(setup, trained)
    phases["final evaluation"] = time.perf_counter() - clock
    report = workdir / "report.html" if cluster.is_first else None
    run_report.write_run_report(setup, trained, ranked, metrics, phases, _command(config, workdir), report)
    if cluster.is_first:
        write_arrays(workdir / "ranks.npz", arrays)
        write_json(workdir / "metrics.json", metrics)  # last: it says that the run is finished
    print_table(phase_table(phases), console)
    return metrics


def _command(config: Config, workdir: Path) -> str:
    """The command that makes this run again: the values that differ from the defaults."""
    defaults = Config().flat()
    changed = [f"--{name}={shlex.quote(str(v))}" for name, v in config.flat().items() if v != defaults[name]]
    return " ".join(["python -m experiments.train", *changed, f"--workdir={shlex.quote(str(workdir))}"])
