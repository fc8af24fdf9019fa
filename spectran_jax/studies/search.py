"""Search on validation, then several seeds of the chosen values: the procedure behind every comparison.

Trials run with `evaluate="valid"` and the first seed, so the test set is read once, by the runs of the chosen values.
Where a folder goes on with more trials, or one that had failed, another may be chosen: then it is read again, and told.
Every method is given as many trials as any other. The first has the values that the method was given, so that on
validation no search ends below its start; the others are points of a Sobol sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spectran_jax.config import Config
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError
from spectran_jax.metrics import SELECTION_METRIC
from spectran_jax.report.words import count
from spectran_jax.studies.datasets import SET_BY_STUDIES, of_the_protocol
from spectran_jax.studies.jobs import Job, Outcome, run_jobs
from spectran_jax.studies.outcomes import shared_protocol, some_came_to_an_end
from spectran_jax.studies.space import Range, design
from spectran_jax.studies.tables import Spread, spread

GIVEN = "given"
"""The trial of the values that a method was given."""

Runner = Callable[..., dict[str, Outcome]]
"""`run_jobs`, or what stands in for it."""


@dataclasses.dataclass(frozen=True)
class Method:
    """What is searched: a configuration, and the fields that a search may change."""

    config: Config
    space: Sequence[Range] = ()


@dataclasses.dataclass(frozen=True)
class Trial:
    """A point of a search."""

    name: str
    """`GIVEN`, or the number of its point, from 0."""
    values: dict[str, float]
    outcome: Outcome

    @property
    def score(self) -> float | None:
        """Its validation metric; None where it failed."""
        metrics = self.outcome.metrics
        return None if metrics is None else float(metrics["valid"][SELECTION_METRIC])


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search and its seeds found for one method."""

    trials: Sequence[Trial]
    chosen: dict[str, float] | None
    """The values of the best trial; {} where nothing was searched, None where every trial failed."""
    runs: dict[int, Outcome]
    """By seed, of the chosen values; failed ones among them."""
    read_before: int = 0
    """Other choices, made of other trials, whose seeds have read the test set in the same folder."""

    @property
    def done(self) -> dict[int, Outcome]:
        """The runs that came to their end, by seed."""
        return {seed: outcome for seed, outcome in self.runs.items() if outcome.ok}

    @property
    def outcomes(self) -> list[Outcome]:
        """Trials and runs."""
        return [*(trial.outcome for trial in self.trials), *self.runs.values()]

    @property
    def failures(self) -> list[Outcome]:
        """Trials and runs that failed."""
        return [outcome for outcome in self.outcomes if not outcome.ok]

    def values(self, metric: str, split: str = "test") -> list[float]:
        """A metric of each run that came to its end, in the order of seeds."""
        return [float(outcome.metrics[split][metric]) for outcome in self.done.values() if outcome.metrics is not None]

    def spread(self, metric: str, split: str = "test") -> Spread | None:
        """Mean and standard deviation of a metric over seeds; None where no run came to its end."""
        return spread(self.values(metric, split))


def search(
    methods: Mapping[str, Method],
    workdir: Path,
    *,
    trials: int,
    seeds: Sequence[int],
    parallel: int,
    runner: Runner = run_jobs,
) -> dict[str, Found]:
    """Searches each method on validation, then runs its chosen values with every seed.

    Args:
      methods: by name, which is also the folder of its runs: `NAME/trial-given`, `NAME/trial-00`, ..., then
        `NAME/trial-02-seed-0`, ... of the chosen trial, or `NAME/seed-0`, ... without a search. So a larger budget
        keeps what is there.
      workdir: of the experiment.
      trials: of each method, that of its configuration as it is among them; 0 takes that without a trial, as does a
        method without a space.
      seeds: of the final runs, which read validation and test set; trials take the first.
      parallel: runs at a time.
      runner: makes the runs.

    Returns:
      What was found, by the methods' names.

    Raises:
      InputError: a negative number of trials, a seed twice, a space that holds what a study sets, a configuration out
        of range; where every run failed, and for bad input; or runs on one data set that follow different protocols.
      RunError: where every run failed otherwise.
    """
    if trials < 0:
        raise InputError(f"The number of trials must be at least 0, got {trials}.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds={','.join(map(str, seeds))}: give at least one seed, and each only once.")
    points = {name: _points(method, trials, seeds[0]) for name, method in methods.items()}
    jobs = [
        Job(_folder(name, trial), config, keep_checkpoints=False)
        for name, tried in points.items()
        for trial, (_, config) in tried.items()
    ]
    ended = runner(jobs, workdir, parallel=parallel, description="Search") if jobs else {}
    some_came_to_an_end(ended)
    tried = {
        name: [Trial(trial, values, ended[_folder(name, trial)]) for trial, (values, _) in tried.items()]
        for name, tried in points.items()
    }
    chosen: dict[str, dict[str, float] | None] = {}
    folders: dict[str, str] = {}
    for name, made in tried.items():
        best = choose(made)
        folders[name] = f"{name}/" if best is None else f"{best.outcome.name}-"
        chosen[name] = best.values if best is not None else None if made else {}
    finals = {
        (name, seed): Job(
            f"{folders[name]}seed-{seed}", methods[name].config.replace(**values, seed=seed, evaluate="both")
        )
        for name, values in chosen.items()
        if values is not None
        for seed in seeds
    }
    runs = runner(list(finals.values()), workdir, parallel=parallel, description="Seeds")
    some_came_to_an_end(runs)
    return {
        name: Found(
            tried[name],
            values,
            {seed: runs[finals[name, seed].name] for seed in seeds if (name, seed) in finals},
            _read_before(workdir / "runs" / name, folders[name].rpartition("/")[2]),
        )
        for name, values in chosen.items()
    }


def _read_before(folder: Path, chosen: str) -> int:
    """Choices in a method's folder, beside `trial-02-` or, without a search, "", whose seeds have read the test set."""
    done = folder.glob("*seed-*/metrics.json")
    return len({path.parent.name.rpartition("seed-")[0] for path in done} - {chosen})


def told_of_trials(trials: int) -> str:
    """How many trials a search had, and of what."""
    points = f" and {count(trials - 1, 'point')} of a Sobol sequence" if trials > 1 else ""
    return f"{count(trials, 'trial')} (the given values{points})"


def told_of_readings(found: Iterable[Found]) -> str:
    """How often runs of chosen values have read the test set, to go behind "which"."""
    before = sum(each.read_before for each in found)
    if not before:
        return "read the test set once"
    return (
        "read the test set. They were not the only ones: in this folder it has been read for "
        f"{count(before, 'earlier choice')}, too"
    )


def choose(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best validation metric, the first of equals; None where there is none that came to its end."""
    alive = [(trial.score, trial) for trial in trials if trial.score is not None]
    return max(alive, key=lambda scored: scored[0])[1] if alive else None


def one_protocol(found: Mapping[str, Found], what: str) -> str:
    """`shared_protocol` of all runs of some methods."""
    return shared_protocol((outcome for each in found.values() for outcome in each.outcomes), what)


def to_json(found: Found) -> dict[str, Any]:
    """For result.json: every trial, the chosen values, and each seed's metrics or failure."""

    def run(outcome: Outcome) -> dict[str, Any]:
        if outcome.metrics is None:
            return {"failed": outcome.failure}
        kept = ("valid", "test", "test_slices", "train", "parameters", "protocol", "digest", "made_with")
        return {name: outcome.metrics[name] for name in kept if name in outcome.metrics}

    return {
        "trials": [{"trial": trial.name, "values": trial.values, **run(trial.outcome)} for trial in found.trials],
        "chosen": found.chosen,
        "read_before": found.read_before,
        "runs": [{"seed": seed, **run(outcome)} for seed, outcome in found.runs.items()],
    }


def _folder(method: str, trial: str) -> str:
    return f"{method}/trial-{trial.zfill(2)}"


def _points(method: Method, trials: int, seed: int) -> dict[str, tuple[dict[str, float], Config]]:
    """Values and configuration of each trial, by its name."""
    for field in method.space:
        if field.name in SET_BY_STUDIES:
            raise InputError(f"{field.name} is no field to search: a study sets it run by run.")
        if field.name in of_the_protocol(method.config):
            raise InputError(f"{field.name} is no field to search: it decides what is measured, trial by trial.")
    check(method.config)
    if not trials or not method.space:
        return {}
    tried = {GIVEN: {field.name: method.config.get(field.name) for field in method.space}}
    tried |= {str(i): values for i, values in enumerate(design(method.space, trials - 1, seed))}
    points = {}
    for name, values in tried.items():
        config = method.config.replace(**values, seed=seed, evaluate="valid")
        check(config)
        points[name] = (values, config)
    return points
