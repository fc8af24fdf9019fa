"""How much the result depends on each value that a person sets: one field at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectran_jax.config import Config
from spectran_jax.report import words
from spectran_jax.report.figures import HALF, Plot
from spectran_jax.studies.curves import Series, lines, told_bars
from spectran_jax.studies.flags import Study
from spectran_jax.studies.grid import Grid, comparison, finish, run_grid
from spectran_jax.studies.publish import Result
from spectran_jax.studies.tables import Table
from spectran_jax.studies.variants import Variant, parse_changes, read_changes, single_changes, text_of

REFERENCE = "as configured"
_LEAST_GAP = 0.09
"""Of ticks, as a share of an axis half a page wide."""

DEFAULT = (
    "temperature=0.03:0.05:0.07:0.1:0.2, negatives=64:128:256:512:1024, attention_live=0.05:0.2:0.5:0.8:0.95, "
    "semantic_scale=0.05:0.1:0.2:0.4:0.8"
)
"""attention_live sets the threshold lambda at start: the share of attention entries above it."""

TEXT = """
One field moves at a time, all others stay as configured; every value is trained with the same seeds. The threshold
lambda of the attention is set through attention_live, the share of entries that are above it at start: lambda itself
follows from the rank, the dimension and k.

Differences within the spread of the seeds are luck; the page lists those of the unchanged configuration one by one.
Every value reads the test set, so the tables describe and don't choose: values are chosen on validation, by
experiments.sweep.
"""


def run(study: Study, changes: str = DEFAULT) -> Result:
    """Runs and publishes the study; `changes` as `variants.parse_changes` reads them.

    Of the default changes those are left out that the configuration does not read; others are refused.
    """
    parsed, left_out = read_changes(study.datasets, parse_changes(changes, "changes"), asked=changes != DEFAULT)
    variants = {
        dataset: [Variant(REFERENCE, {}), *single_changes(config, parsed[dataset])]
        for dataset, config in study.datasets.items()
    }
    grid = run_grid(study, variants, "Sensitivity")
    found = result(grid, study.datasets, parsed, left_out, study.command)
    return finish(study, "sensitivity", grid, found, grid.against(REFERENCE))


def result(
    grid: Grid,
    datasets: Mapping[str, Config],
    changes: Mapping[str, Mapping[str, Sequence[Any]]],
    left_out: str,
    command: str,
) -> Result:
    """The tables, and a plot for each field of numbers on each data set."""
    plots = [
        plot
        for dataset, config in datasets.items()
        for name, values in changes[dataset].items()
        if (plot := field_plot(grid, dataset, config, name, values)) is not None
    ]
    tables = [comparison(grid, "Sensitivity", REFERENCE, note=left_out), seed_table(grid)]
    return Result("Sensitivity to single values", tables, plots, TEXT, command)


def field_plot(grid: Grid, dataset: str, config: Config, name: str, values: Sequence[Any]) -> Plot | None:
    """NDCG@10 over the values of one field, that of the configuration among them; None where they are no numbers."""
    own = config.get(name)
    if isinstance(own, str | bool):
        return None
    found = {v: grid.metric(dataset, REFERENCE if v == own else f"{name}={text_of(v)}", "ndcg@10") for v in values}
    found[own] = grid.metric(dataset, REFERENCE, "ndcg@10")
    kept = {v: found[v] for v in sorted(found)}
    points = {v: spread for v, spread in kept.items() if spread is not None}
    if not points:
        return None
    x = list(points)
    wide = x[0] > 0 and x[-1] >= 8 * x[0] and not 0.5 < x[-1] <= 1  # shares lie together at their upper end
    return lines(
        f"sensitivity-{dataset}-{name}",
        f"{words.label(name)}, {dataset}",
        f"Test NDCG@10, {told_bars(points.values())}. {text_of(own)} is the configured value.",
        {"NDCG@10": Series.over_seeds(points)},
        xlabel=words.label(name),
        ylabel="NDCG@10",
        xscale="log" if wide else "linear",
        ticks={v: f"{v:g}" for v in _apart(x, wide)},
        size=HALF,
        legend=False,
    )


def _apart(values: Sequence[float], log: bool) -> list[float]:
    """The values that can be written beside each other on an axis: both ends, and whatever is far enough from them."""
    places = np.log(values) if log else np.asarray(values, float)
    least = _LEAST_GAP * (places[-1] - places[0])
    kept = [0]
    for index in range(1, len(values) - 1):
        if places[index] - places[kept[-1]] >= least and places[-1] - places[index] >= least:
            kept.append(index)
    return [values[index] for index in sorted({*kept, len(values) - 1})]


def seed_table(grid: Grid) -> Table:
    """What each seed of the unchanged configuration gave."""
    rows = [
        [dataset, str(seed), outcome.metrics["test"]["ndcg@10"], outcome.metrics["test"]["hr@10"]]
        for dataset in grid.runs
        for seed, outcome in grid.ok(dataset, REFERENCE).items()
        if outcome.metrics
    ]
    return Table("Seeds of the unchanged configuration", ["Data set", "Seed", "NDCG@10", "HR@10"], rows, appendix=True)
