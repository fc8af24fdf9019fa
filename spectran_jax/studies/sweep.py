"""A search over ranges that the user names, on each data set, and the test metrics of its choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.metrics import SELECTION_METRIC
from spectran_jax.report import words
from spectran_jax.studies.comparison_plots import search_curves
from spectran_jax.studies.comparison_tables import trials_table
from spectran_jax.studies.flags import Study
from spectran_jax.studies.grid import METRICS
from spectran_jax.studies.jobs import run_jobs
from spectran_jax.studies.outcomes import made_otherwise, with_missing_times
from spectran_jax.studies.ownership import claimed
from spectran_jax.studies.publish import Result
from spectran_jax.studies.reads import refuse_unread
from spectran_jax.studies.results_md import publish_study
from spectran_jax.studies.search import (
    Found,
    Method,
    Runner,
    one_protocol,
    search,
    to_json,
    told_of_readings,
    told_of_trials,
)
from spectran_jax.studies.space import Range, at_the_top, describe, parse_space
from spectran_jax.studies.tables import Cell, Table


def run(study: Study, searched: str, trials: int) -> Result:
    """Runs and publishes a search over `searched`, ranges as `space.parse_space` reads them; see `sweep`.

    Raises:
      InputError: no range, a malformed one, or one of a field that the command line fixes; and as `sweep`.
      RunError: as `sweep`.
    """
    if not searched:
        raise InputError("Name what to search: --search=learning_rate=log:3e-4:3e-3,dropout=0.1:0.5. See --help.")
    space = parse_space(searched)
    if fixed := [each.name for each in space if each.name in study.given]:
        raise InputError(f"--search and --{fixed[0]} both set {fixed[0]}; leave one out.")
    result = sweep(
        study.datasets,
        study.workdir,
        space=space,
        trials=trials,
        seeds=study.seeds,
        parallel=study.parallel,
        command=study.command,
    )
    encoders = sorted({config.encoder.item_encoder for config in study.datasets.values()})
    publish_study(study, "sweep", result, encoders=encoders)
    return result


def sweep(
    datasets: Mapping[str, Config],
    workdir: Path,
    *,
    space: Sequence[Range],
    trials: int,
    seeds: Sequence[int],
    parallel: int = 1,
    command: str = "",
    runner: Runner = run_jobs,
) -> Result:
    """Searches `space` on each data set's validation set, then runs the chosen values with each seed.

    Args:
      datasets: the values that are not searched, by data set.
      workdir: of the experiment; runs are in `runs/DATASET/`.
      space: fields and their ranges.
      trials: on each data set, that of its values as they are among them.
      seeds: of the runs that read the test set; the first is that of the trials.
      parallel: runs at a time.
      command: for the page.
      runner: makes the runs.

    Returns:
      Two tables a data set, test metrics by seed and trials, and a plot of the search, where it has several trials;
      `data["sweeps"]` holds seeds and trials by data set.

    Raises:
      InputError: as `search`, for no field, and for one that the configuration of a data set does not read.
      RunError: as `search`.
    """
    if not space:
        raise InputError("There is nothing to search: name a field, for example --search=dropout=0.1:0.5.")
    refuse_unread({name: at_the_top(space, c) for name, c in datasets.items()}, [r.name for r in space], "search")
    methods = {name: Method(config, space) for name, config in datasets.items()}
    with claimed(workdir, command):
        found = search(methods, workdir, trials=trials, seeds=seeds, parallel=parallel, runner=runner)
    tables, curves = [], []
    for number, (name, each) in enumerate(found.items()):
        one_protocol({name: each}, name)
        curves.append(search_curves({datasets[name].encoder.item_encoder: each}, name, f"search-{number}"))
        tables += [_metrics_table(name, each), trials_table(f"Trials on {name}", {(name,): each}, ("Data set",))]
    chosen = "it" if trials == 1 else f"the one of best {words.label(SELECTION_METRIC)}"
    text = (
        f"{told_of_trials(trials)} ran on the validation set with seed {seeds[0]}; {chosen} was run with "
        f"{words.count(len(seeds), 'seed')}, which {told_of_readings(found.values())}."
    )
    encoders = ", ".join(sorted({f"{c.encoder.item_encoder} with {c.backbone.backbone}" for c in datasets.values()}))
    return Result(
        f"Search for {encoders} on {', '.join(datasets)}",
        tables,
        [plot for plot in curves if plot is not None],
        text=with_missing_times(text, {name: each.outcomes for name, each in found.items()}),
        command=command,
        data={"sweeps": {name: to_json(each) for name, each in found.items()}},
    )


def _metrics_table(name: str, found: Found) -> Table:
    rows: list[Sequence[Cell]] = [
        [str(seed), *(outcome.metrics["test"][metric] for metric in METRICS)]
        for seed, outcome in found.done.items()
        if outcome.metrics is not None
    ]
    if len(rows) > 1:
        rows.append(["mean ± s.d.", *(found.spread(metric) for metric in METRICS)])
    chosen = f" of {describe(found.chosen)}" if found.chosen else ""
    failed = len(found.runs) - len(found.done)
    lost = f"{failed} of {words.count(len(found.runs), 'seed')} failed." if failed else ""
    return Table(
        f"Test metrics on {name}{chosen}",
        ["Seed", *map(words.label, METRICS)],
        rows,
        note=" ".join(filter(None, (lost, made_otherwise(found.outcomes)))),
    )
