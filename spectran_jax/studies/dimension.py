"""How methods fare as the dimension of item vectors grows."""

from __future__ import annotations

from collections.abc import Sequence

from spectran_jax.errors import InputError
from spectran_jax.studies.curves import Series, lines, told_bars
from spectran_jax.studies.flags import Study
from spectran_jax.studies.grid import Grid, comparison, everywhere, finish, run_grid
from spectran_jax.studies.publish import Result
from spectran_jax.studies.tables import Spread
from spectran_jax.studies.variants import Variant, encoder_variants

DIMENSIONS = (16, 32, 64, 128, 256)
ENCODERS = ("id", "svd", "spectran")

TEXT = """
Every encoder at every dimension, all else alike. Where the text has fewer components than dimensions, the encoders that
take them one by one (svd, spectran, llminit, alphafuse, llmesr) are given zeros for the rest (--pad_rank). An encoder
whose vectors collapse stops gaining early: more dimensions give it no more directions.
"""


def run(study: Study, encoders: Sequence[str] = ENCODERS, dimensions: Sequence[int] = DIMENSIONS) -> Result:
    """Runs and publishes the study of these encoders at these dimensions."""
    chosen = encoder_variants(encoders)
    every = [
        Variant(f"{encoder.name} d={d}", {**encoder.values, "dimension": d, "pad_rank": True})
        for encoder in chosen
        for d in dimensions
    ]
    grid = run_grid(study, everywhere(study, every), "Dimensions")
    names = [encoder.name for encoder in chosen]
    return finish(
        study, "dimension", grid, result(grid, names, dimensions, study.command), references(names, dimensions)
    )


def parse_dimensions(values: Sequence[str]) -> list[int]:
    """Dimensions as --dimensions names them; raises `InputError` where one is no whole number above 0, or twice."""
    if not values or len(set(values)) < len(values) or not all(v.isdecimal() and int(v) > 0 for v in values):
        raise InputError(f"--dimensions={','.join(values)}: give whole numbers above 0, comma-separated, each once.")
    return [int(value) for value in values]


def result(grid: Grid, encoders: Sequence[str], dimensions: Sequence[int], command: str) -> Result:
    """The table, against `spectran`, or else the first encoder, at the same dimension, and a plot for each data set."""
    plots = []
    for dataset in grid.runs:
        series: dict[str, Series] = {}
        shown: list[Spread] = []
        for encoder in encoders:
            found = {d: grid.metric(dataset, f"{encoder} d={d}", "ndcg@10") for d in dimensions}
            kept = {d: value for d, value in found.items() if value is not None}
            series[encoder] = Series.over_seeds(kept)
            shown += kept.values()
        plots.append(
            lines(
                f"dimension-{dataset}",
                f"NDCG@10 by dimension, {dataset}",
                f"Test NDCG@10, {told_bars(shown)}.",
                series,
                xlabel="Dimension d",
                ylabel="NDCG@10",
                xscale="log",
                ticks={d: str(d) for d in dimensions},
            )
        )
    title, same = f"{reference(encoders)} at the same d", references(encoders, dimensions)
    table = comparison(grid, "Metrics by dimension", title, same)
    return Result("Dimension of item vectors", [table], plots, TEXT, command)


def reference(encoders: Sequence[str]) -> str:
    """The encoder that the others are compared with."""
    return "spectran" if "spectran" in encoders else encoders[0]


def references(encoders: Sequence[str], dimensions: Sequence[int]) -> dict[str, str]:
    """Of each variant, the reference at the same dimension."""
    return {f"{encoder} d={d}": f"{reference(encoders)} d={d}" for encoder in encoders for d in dimensions}
