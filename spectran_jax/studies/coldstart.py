"""Items that training never saw: how they are found by their text alone, and what it costs to show them more often."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spectran_jax import item_encoders
from spectran_jax.config_checks import SCORES_BELOW_ZERO
from spectran_jax.errors import InputError, RunError
from spectran_jax.ranks import Ranks
from spectran_jax.report.figures import Plot
from spectran_jax.studies import longtail
from spectran_jax.studies.curves import Series, bars, lines
from spectran_jax.studies.exposure import Exposure, exposures
from spectran_jax.studies.flags import Study
from spectran_jax.studies.grid import Grid, everywhere, finish, run_grid
from spectran_jax.studies.popularity import group_metric
from spectran_jax.studies.publish import Result
from spectran_jax.studies.tables import Cell, Spread, Table
from spectran_jax.studies.variants import encoder_variants

TEXT = """
Test users whose target no training sequence holds. Its vector is made of its text alone: an encoder without text has
nothing to go by, and ties count against it. With --holdout a share of the trained items is taken out of every training
history, the same for all encoders and seeds; they stay candidates, targets, and part of the histories that are
evaluated. Without it, cold targets are those that the split leaves, often few: see the counts.

Whoever fills lists with cold items finds many of them, at the cost of all others. So each trained model is evaluated
with the scores of cold items times several factors, too (--cold_scale; 1 leaves them as they are). Compare encoders
where as many places of the lists go to cold items, or where all targets together fare as well.
"""


def run(study: Study, encoders: Sequence[str] = (), holdout: float = 0.0) -> Result:
    """Runs and publishes the study; the first encoder is the reference.

    Args:
      study: data sets, seeds, and where.
      encoders: by name; all if empty.
      holdout: share of the items in training to take out of it.

    Raises:
      InputError: for a `cold_scale` other than 1; and as `run_grid`.
    """
    if any(config.objective.cold_scale != 1 for config in study.datasets.values()):
        raise InputError("This study evaluates at several factors of its own: leave cold_scale out.")
    variants = encoder_variants(encoders, **({"holdout_items": holdout} if holdout else {}))
    reference = variants[0].name
    grid = run_grid(study, everywhere(study, variants), "Cold start")
    found = longtail.result(grid, "Cold start", ("cold", "warm", "all"), reference, TEXT, study.command)
    table, plots, missing = exposure_parts(grid)
    if table.rows:
        table, missing = dataclasses.replace(table, note=" ".join([table.note, *missing])), []
    counts, by_group, *others = found.tables
    by_group = dataclasses.replace(by_group, note=" ".join(filter(None, (by_group.note, *missing))))
    found = dataclasses.replace(found, tables=[counts, by_group, *others, table], figures=[*found.figures, *plots])
    return finish(study, "coldstart", grid, found, grid.against(reference))


def exposure_parts(grid: Grid) -> tuple[Table, list[Plot], list[str]]:
    """What showing cold items more often buys and costs: a row a factor of each encoder that knows them, a plot a data
    set; and whose model can't be had any more, in words."""
    rows: list[list[Cell]] = []
    missing: list[str] = []
    plots = []
    for dataset in grid.runs:
        series: dict[str, Series] = {}
        for encoder in grid.shown(dataset):
            found = _exposures(grid, dataset, encoder, missing)
            points: list[tuple[Spread, Spread]] = []
            for at in zip(*found, strict=True):  # one factor, all seeds
                chosen_by = _figures([each.valid for each in at])
                over_all, cold = _figures([each.test for each in at])
                share = f"{100 * np.mean([each.share for each in at]):.1f} %"
                rows.append([dataset, encoder, f"{at[0].scale:g}", *chosen_by, share, over_all, cold])
                if over_all is not None and cold is not None:
                    points.append((cold, over_all))
            if points:
                x, y = zip(*points, strict=True)
                series[encoder] = Series([each.mean for each in x], [each.mean for each in y], bars(y))
        if series:
            plots.append(exposure_plot(dataset, series))
    columns = ["Data set", "Encoder", "Factor", "Validation NDCG@10", "Validation cold HR@10", "Cold places"]
    columns += ["NDCG@10", "Cold HR@10"]
    note = "Cold places: share of the places in test users' lists of ten that cold items have."
    return Table("Cold items shown more and less", columns, rows, note=note), plots, missing


def _exposures(grid: Grid, dataset: str, encoder: str, missing: list[str]) -> list[list[Exposure]]:
    """Of each seed that can be evaluated anew, the reason told in `missing` otherwise; none of an encoder for which all
    cold items are alike."""
    found: list[list[Exposure]] = []
    for outcome in grid.ok(dataset, encoder).values():
        assert outcome.metrics is not None
        config = outcome.metrics["config"]
        if (loss := config["objective"]["loss"]) in SCORES_BELOW_ZERO:
            note = f"{dataset} at no other factor: scores of {loss} are below 0 for the most part."
            missing += [note] * (note not in missing)
            continue
        try:
            if item_encoders.lookup(config["encoder"]["item_encoder"]).knows_cold_items():
                found.append(exposures(outcome.folder, outcome.metrics["digest"]))
        except (InputError, RunError) as error:
            missing.append(f"{outcome.name} at no other factor: {error}")
    return found


def _figures(runs: Sequence[Ranks]) -> tuple[Spread | None, Spread | None]:
    """NDCG@10 of all targets and HR@10 of cold ones, over seeds."""
    return group_metric(runs, "all", "ndcg@10"), group_metric(runs, "cold", "hr@10")


def exposure_plot(dataset: str, series: Mapping[str, Series]) -> Plot:
    """What all targets lose where cold ones are found more often."""
    return lines(
        f"exposure-{dataset}",
        f"NDCG@10 over HR@10 of cold targets, {dataset}",
        "One point a factor of the scores of cold items, the largest on the right. A line further up is better.",
        series,
        xlabel="HR@10 of cold targets",
        ylabel="NDCG@10 of all targets",
    )
