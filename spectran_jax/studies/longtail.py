"""Who is served well: metrics by the popularity of the target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spectran_jax.metrics import HEAD_SHARE, TAIL_SHARE
from spectran_jax.ranks import Ranks
from spectran_jax.report import words
from spectran_jax.report.figures import Plot
from spectran_jax.studies.curves import Series, lines, told_bars
from spectran_jax.studies.differences import INTERVALS, difference
from spectran_jax.studies.flags import Study
from spectran_jax.studies.grid import Grid, everywhere, finish, run_grid
from spectran_jax.studies.popularity import CLASSES, group_metric, groups_of
from spectran_jax.studies.publish import Result
from spectran_jax.studies.tables import Cell, Table, best_cells
from spectran_jax.studies.variants import encoder_variants

TEXT = f"""
Test users by the popularity of their target in training: the head is the {words.percent(HEAD_SHARE)} most popular of
the trained items, the tail the {words.percent(TAIL_SHARE)} least popular, cold items stand in no training sequence.
Ranking is against the whole catalogue in every group, so groups differ in difficulty: compare encoders within a group.
"""


def run(study: Study, encoders: Sequence[str] = ()) -> Result:
    """Runs and publishes the study of the long tail; the first encoder is the reference."""
    variants = encoder_variants(encoders)
    grid = run_grid(study, everywhere(study, variants), "Long tail")
    found = result(grid, "Long tail", (*CLASSES, "all"), variants[0].name, TEXT, study.command)
    return finish(study, "longtail", grid, found, grid.against(variants[0].name))


def result(grid: Grid, title: str, groups: Sequence[str], reference: str, text: str, command: str) -> Result:
    """HR@10 and NDCG@10 by group, what each encoder has over the reference in each, and how many users that is."""
    tables = [
        count_table(grid, groups),
        *(group_table(grid, groups, metric) for metric in ("ndcg@10", "hr@10")),
        difference_table(grid, groups, reference),
    ]
    return Result(title, tables, [group_plot(grid, d, groups) for d in grid.runs], text, command)


def count_table(grid: Grid, groups: Sequence[str]) -> Table:
    """Test users and items by group."""
    rows: list[list[Cell]] = []
    for dataset in dict.fromkeys(dataset for dataset, _ in grid.pairs()):
        ranks = next(iter(grid.ok(dataset, grid.shown(dataset)[0]).values())).ranks()
        users = groups_of(ranks)
        items = groups_of(ranks._replace(item=np.arange(len(ranks.item_counts))))
        rows.append([dataset, "users", *(int(users[name].sum()) for name in groups)])
        rows.append([dataset, "items", *(int(items[name].sum()) for name in groups)])
    return Table("Test users and catalogue by group", ["Data set", "Count of", *map(str.capitalize, groups)], rows)


def ranks_of(grid: Grid, dataset: str, encoder: str) -> list[Ranks]:
    """Of each seed that finished."""
    return [outcome.ranks() for outcome in grid.ok(dataset, encoder).values()]


def group_table(grid: Grid, groups: Sequence[str], metric: str) -> Table:
    """One row an encoder, one column a group; the best of each group on each data set is bold."""
    rows: list[list[Cell]] = []
    bold: set[tuple[int, int]] = set()
    for dataset in grid.runs:
        start = len(rows)
        for encoder in grid.shown(dataset):
            runs = ranks_of(grid, dataset, encoder)
            rows.append([dataset, encoder, *(group_metric(runs, group, metric) for group in groups)])
        bold |= best_cells(rows, range(start, len(rows)), range(2, 2 + len(groups)))
    name = words.label(metric)
    columns = ["Data set", "Encoder", *(f"{g.capitalize()} {name}" for g in groups)]
    return Table(f"{name} by group", columns, rows, note=grid.note(), bold=bold)


def difference_table(grid: Grid, groups: Sequence[str], reference: str) -> Table:
    """What each encoder's NDCG@10 has over the reference's within each group."""
    rows: list[list[Cell]] = []
    for dataset, encoder in grid.pairs():
        if encoder == reference:
            continue
        users = groups_of(next(iter(grid.ok(dataset, encoder).values())).ranks())
        runs = grid.ok(dataset, encoder), grid.ok(dataset, reference)
        over = [
            grid.over(dataset, encoder, reference) if group == "all" else difference(*runs, users[group])
            for group in groups
        ]
        rows.append([dataset, encoder, *(None if each is None else str(each) for each in over)])
    columns = ["Data set", "Encoder", *map(str.capitalize, groups)]
    note = f"Paired by user, each user's NDCG@10 averaged over the seeds that both have, 95 % intervals. {INTERVALS}"
    return Table(f"NDCG@10 over {reference}", columns, rows, note=note)


def group_plot(grid: Grid, dataset: str, groups: Sequence[str]) -> Plot:
    """NDCG@10 by group, the encoders of one beside one another."""
    series, shown = {}, []
    encoders = list(grid.shown(dataset))
    for nth, encoder in enumerate(encoders):
        runs = ranks_of(grid, dataset, encoder)
        aside = (nth - (len(encoders) - 1) / 2) * 0.6 / len(encoders)
        found = [(i + aside, group_metric(runs, g, "ndcg@10")) for i, g in enumerate(groups)]
        kept = [(i, value) for i, value in found if value is not None]
        series[encoder] = Series.over_seeds(dict(kept))
        shown += [value for _, value in kept]
    return lines(
        f"groups-{dataset}",
        f"NDCG@10 by group, {dataset}",
        f"Test NDCG@10, {told_bars(shown)}.",
        series,
        xlabel="Popularity of the target in training",
        ylabel="NDCG@10",
        ticks=dict(enumerate(groups)),
        joined=False,
    )
