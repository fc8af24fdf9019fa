"""Where SpecTran looks in the spectrum: its attention, its Taylor map and its reach, learned and through training."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectran_jax.adapter import energy_bin_width
from spectran_jax.report.figures import HALF, Plot
from spectran_jax.report.spectral_plots import attention_map, position_encoding
from spectran_jax.studies import courses
from spectran_jax.studies.attention import Adapter, reach, read_adapter
from spectran_jax.studies.curves import Series, energy_map, lines
from spectran_jax.studies.flags import Study
from spectran_jax.studies.grid import Grid, everywhere, finish, run_grid
from spectran_jax.studies.jobs import Outcome
from spectran_jax.studies.publish import Result
from spectran_jax.studies.tables import Cell, Table, spread
from spectran_jax.studies.variants import encoder_variants

ENCODER = "spectran"

TEXT = """
W is the matrix that turns spectral coordinates into item vectors; SVD keeps the first d components, one for each
output dimension. The tail is the share of W's energy beyond the first d components, where SVD sees nothing. Breadth is
how many components an output dimension draws on (exp of the entropy of its row's energy): 1 for SVD. Half is how many
components, from the largest singular value on, hold half of W's energy. Live is the share of attention entries that
Softshrink lets through.

Maps are those of the first seed, at the step that validation chose; curves are means over seeds.
"""


def run(study: Study) -> Result:
    """Runs and publishes the study."""
    grid = run_grid(study, everywhere(study, encoder_variants([ENCODER])), "Spectrum")
    return finish(study, "spectrum", grid, result(grid, study.command))


def result(grid: Grid, command: str) -> Result:
    """The table over seeds and the plots of each data set."""
    rows: list[list[Cell]] = []
    plots: list[Plot] = []
    for dataset, encoder in grid.pairs():
        outcomes = list(grid.ok(dataset, encoder).values())
        adapters = [_adapter(outcome) for outcome in outcomes]
        histories = [courses.read_history(outcome.folder) for outcome in outcomes]
        tails = [courses.value_at(history, "tail_energy", 0) for history in histories]
        reaches = [reach(adapter) for adapter in adapters]
        start = spread([tail for tail in tails if tail is not None])
        rows.append(
            [
                dataset,
                grid.metric(dataset, encoder, "ndcg@10"),
                start,
                *(spread([x for x in column if x is not None]) for column in zip(*reaches, strict=True)),
            ]
        )
        plots += [plot for plot in _plots(dataset, adapters[0], histories) if plot is not None]
    columns = ["Data set", "NDCG@10", "Tail at start", "Tail", "Live", "Breadth", "Half"]
    return Result(
        "SpecTran in the spectrum",
        [Table("Reach of the adapter", columns, rows, note=grid.note()), taylor_table(grid)],
        plots,
        TEXT,
        command,
    )


def taylor_table(grid: Grid) -> Table:
    """The learned coefficients, and p at the largest singular value and at the last of the first d."""
    rows: list[list[Cell]] = []
    for dataset, encoder in grid.pairs():
        for seed, outcome in grid.ok(dataset, encoder).items():
            adapter = _adapter(outcome)
            if adapter.taylor is not None and adapter.diagonal is not None:
                coefficients = ", ".join(f"{c:.4g}" for c in adapter.taylor)
                rows.append([dataset, str(seed), coefficients, float(adapter.diagonal[0]), float(adapter.diagonal[-1])])
    columns = ["Data set", "Seed", "c_0, c_1, ...", "p at σ_1", "p at σ_d"]
    return Table("Taylor map", columns, rows, note="p(σ) = c_0 + c_1 σ + c_2 σ² + ...; at the start p = 1.")


def _adapter(outcome: Outcome) -> Adapter:
    assert outcome.metrics is not None
    return read_adapter(outcome.folder, outcome.metrics["digest"])


def _plots(dataset: str, adapter: Adapter, histories: list[list[dict[str, Any]]]) -> list[Plot | None]:
    def named(plot: Plot | None) -> Plot | None:
        return None if plot is None else plot._replace(title=f"{plot.title}, {dataset}")

    d, rank = adapter.weights.shape
    steps, energy = courses.mean_course(histories, "component_energy")
    return [
        named(attention_map(adapter.attention, f"attention-{dataset}")),
        named(position_encoding(adapter.taylor, adapter.sigma, adapter.diagonal, f"position-{dataset}")),
        _taylor_curve(dataset, histories),
        _share_curves(dataset, histories),
        energy_map(
            f"energy-{dataset}",
            f"Energy of W through training, {dataset}",
            f"By component, from the largest singular value on, {energy_bin_width(rank)} a bin. Stronger is more; the "
            f"dashed line is where SVD stops. Mean over seeds, {courses.SHARED}; validations are evenly spaced, "
            "whatever the steps between them.",
            steps.tolist(),
            energy,
            energy_bin_width(rank),
            d,
        )
        if len(steps)
        else None,
    ]


def _share_curves(dataset: str, histories: list[list[dict[str, Any]]]) -> Plot:
    """Live share and tail through training."""
    series = {}
    for label, key in (("live attention", "attention_live"), ("tail of W", "tail_energy")):
        steps, values = courses.mean_course(histories, key)
        series[label] = Series(steps.tolist(), (100 * np.asarray(values)).tolist())
    return lines(
        f"shares-{dataset}",
        f"Live attention and tail, {dataset}",
        "The share of entries that Softshrink lets through, and of W's energy beyond the first d components; mean over "
        f"seeds, {courses.SHARED}.",
        series,
        xlabel="Step",
        ylabel="Share, %",
        markers=False,
        size=HALF,
    )


def _taylor_curve(dataset: str, histories: list[list[dict[str, Any]]]) -> Plot | None:
    """The coefficients through training."""
    steps, values = courses.mean_course(histories, "taylor")
    if not len(steps):
        return None
    return lines(
        f"taylor-{dataset}",
        f"Taylor coefficients, {dataset}",
        "They start at p = 1. With rows of W held at unit length only p against the attention counts. Mean over seeds, "
        f"{courses.SHARED}.",
        {f"c_{j}": Series(steps.tolist(), values[:, j].tolist()) for j in range(values.shape[1])},
        xlabel="Step",
        ylabel="Coefficient",
        markers=False,
        size=HALF,
    )
