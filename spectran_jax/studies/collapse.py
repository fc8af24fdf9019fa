"""Whether item vectors collapse: the spectra of what each encoder learned, at its best step and through training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spectran_jax.errors import InputError
from spectran_jax.report import words
from spectran_jax.report.figures import Plot
from spectran_jax.studies import courses
from spectran_jax.studies.curves import Series, lines
from spectran_jax.studies.flags import Study
from spectran_jax.studies.grid import Grid, everywhere, finish, run_grid
from spectran_jax.studies.jobs import Outcome
from spectran_jax.studies.publish import Result
from spectran_jax.studies.spectra import KEY, collapse
from spectran_jax.studies.tables import Cell, Table, spread
from spectran_jax.studies.text_part import text_singular_values
from spectran_jax.studies.variants import encoder_variants

TEXT = """
Singular values of the centred item vectors as they are scored, of the items that training sees, at the start and at
every validation. Effective rank is exp of the entropy of the normalised singular values (Roy and Vetterli, 2007);
information abundance their sum over the largest (Guo et al., ICML 2024). Both are 1 where one direction holds
everything, and d where all directions are used alike. The top direction is its share of the variance.

The vectors are what text and IDs make together, and IDs that start at random fill all directions. Text rank and text
abundance are those of the same items' vectors with every ID at zero, as an item has them that came after training; an
encoder that leaves nothing without IDs has none.

The table stands at the step that validation chose.
"""


def run(study: Study, encoders: Sequence[str] = ()) -> Result:
    """Runs and publishes the study of these encoders, of all if none is named."""
    grid = run_grid(study, everywhere(study, encoder_variants(encoders)), "Collapse")
    return finish(study, "collapse", grid, result(grid, study.command))


def result(grid: Grid, command: str) -> Result:
    """The table and the plots of a grid."""
    rows: list[list[Cell]] = []
    missing: list[str] = []
    histories: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
    for dataset, encoder in grid.pairs():
        outcomes = [o for o in grid.ok(dataset, encoder).values() if o.metrics]
        histories[dataset, encoder] = read = [courses.read_history(o.folder) for o in outcomes]
        steps = [o.metrics["train"]["best_step"] for o in outcomes if o.metrics]
        best = [courses.value_at(h, KEY, step) for h, step in zip(read, steps, strict=True)]
        starts = [collapse(values).effective_rank for h in read if (values := courses.value_at(h, KEY, 0))]
        measures = [collapse(values) for values in best if values is not None]
        at_best = [spread([values[i] for values in measures]) for i in range(3)]
        text = [collapse(values) for outcome in outcomes if (values := _text_values(outcome, missing)) is not None]
        of_text = [
            spread([values[i] for values in text]) if any(values[i] for values in text) else None for i in (0, 1)
        ]
        rows.append([dataset, encoder, grid.metric(dataset, encoder, "ndcg@10"), spread(starts), *at_best, *of_text])
    columns = ["Data set", "Encoder", "NDCG@10", "Rank at start", "Effective rank", "Abundance", "Top direction"]
    columns += ["Text rank", "Text abundance"]
    note = " ".join(filter(None, (grid.note(), *missing)))
    table = Table("Collapse of item vectors", columns, rows, note=note)
    plots = []
    for dataset in grid.runs:
        read_here = {encoder: found for (d, encoder), found in histories.items() if d == dataset}
        best_steps = {
            encoder: [o.metrics["train"]["best_step"] for o in grid.ok(dataset, encoder).values() if o.metrics]
            for encoder in read_here
        }
        plots.append(spectrum_plot(dataset, read_here, best_steps))
        plots += [course_plot(dataset, measure, read_here) for measure in ("effective_rank", "information_abundance")]
    return Result("Collapse of item vectors", [table], plots, TEXT, command)


def _text_values(outcome: Outcome, missing: list[str]) -> list[float] | None:
    """None, with the reason told in `missing`, where they can't be had any more."""
    assert outcome.metrics is not None
    try:
        return text_singular_values(outcome.folder, outcome.metrics["digest"])
    except InputError as error:
        missing.append(f"No text rank of {outcome.name}: {error}")
        return None


def spectrum_plot(dataset: str, histories: dict[str, list[Any]], best_steps: dict[str, list[int]]) -> Plot:
    """Singular values over the largest at the best step, averaged over seeds."""
    series = {}
    for encoder, found in histories.items():
        best = [courses.value_at(h, KEY, s) for h, s in zip(found, best_steps[encoder], strict=True)]
        scaled = [np.asarray(v) / max(v) for v in best if v is not None and max(v) > 0]
        mean = np.mean(scaled, axis=0) if scaled else np.zeros(0)
        mean = mean[mean > 1e-6]
        series[encoder] = Series(list(range(1, len(mean) + 1)), mean.tolist())
    return lines(
        f"spectrum-{dataset}",
        f"Singular values of item vectors, {dataset}",
        "At the step that validation chose, over the largest. A line that drops early shows collapse.",
        series,
        xlabel="Direction",
        ylabel="Singular value / largest",
        yscale="log",
        markers=False,
    )


def course_plot(dataset: str, measure: str, histories: dict[str, list[Any]]) -> Plot:
    """One measure of `Collapse` through training, averaged over seeds."""
    series = {}
    for encoder, found in histories.items():
        read = [[{**line, measure: getattr(collapse(line[KEY]), measure)} for line in h if KEY in line] for h in found]
        steps, values = courses.mean_course(read, measure)
        series[encoder] = Series(steps.tolist(), values.tolist())
    return lines(
        f"{measure.replace('_', '-')}-{dataset}",
        f"{words.label(measure)} through training, {dataset}",
        f"Of the centred item vectors, mean over seeds, {courses.SHARED}.",
        series,
        xlabel="Step",
        ylabel=words.label(measure),
        markers=False,
    )
