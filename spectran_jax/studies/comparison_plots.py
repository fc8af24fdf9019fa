"""The plots of a comparison: bars with error bars by place, and how far each search has come by trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spectran_jax.metrics import SELECTION_METRIC
from spectran_jax.report import figures, words
from spectran_jax.report.figures import BLUE, FONT, INK, ORANGE, STYLES, Plot
from spectran_jax.studies.rivals import TEST_METRIC, Cells, Place
from spectran_jax.studies.search import Found
from spectran_jax.studies.tables import spread


def plots(cells: Cells, places: Sequence[Place], encoders: Sequence[str]) -> list[Plot]:
    """All plots of a comparison, by place: those that have something to show."""
    made = []
    for number, place in enumerate(places):
        here = {encoder: cells[*place, encoder] for encoder in encoders}
        where = f"{place[0]}, {place[1]}"
        made += [bars(here, where, f"bars-{number}"), search_curves(here, where, f"search-{number}")]
    return [plot for plot in made if plot is not None]


def bars(found: Mapping[str, Found], where: str, name: str) -> Plot | None:
    """The mean test metric of each method, with its standard deviation over seeds and a dot for each seed."""
    shown = {encoder: each.values(TEST_METRIC) for encoder, each in found.items() if each.done}
    if not shown:
        return None
    figure = figures.figure(figures.HALF[0], 90 + 26 * len(shown))
    axes = figure.add_subplot()
    at = np.arange(len(shown))[::-1]
    means, stds = np.array([spread(values) for values in shown.values()], float).T  # NaN where there is one seed
    axes.barh(at, means, height=0.62, color=BLUE, alpha=0.45)
    axes.errorbar(means, at, xerr=stds, fmt="none", ecolor=INK, elinewidth=1.4, capsize=4)
    for y, values in zip(at, shown.values(), strict=True):
        axes.plot(values, np.full(len(values), y + 0.17), "o", color=ORANGE, markersize=4)
    figures.style(axes, xlabel=f"Test {words.label(TEST_METRIC)}", grid="x")
    axes.set_yticks(at, list(shown), fontsize=FONT, color=INK)
    best = list(shown)[means.argmax()]
    marks = "There is one seed." if np.isnan(stds).all() else "Lines are standard deviations, dots are seeds."
    caption = f"{best} has the largest mean, {means.max():.4f}. {marks}"
    description = f"Test {words.label(TEST_METRIC)} of each method on {where}"
    return Plot(figures.svg(figure, name, description), f"{words.label(TEST_METRIC)} on {where}", caption)


def search_curves(found: Mapping[str, Found], where: str, name: str) -> Plot | None:
    """The best validation metric so far over the trials of each search."""
    from matplotlib.ticker import MaxNLocator

    shown = {}
    for encoder, each in found.items():
        scores = [np.nan if trial.score is None else trial.score for trial in each.trials]
        if len(scores) > 1 and not np.isnan(scores).all():
            shown[encoder] = np.fmax.accumulate(np.asarray(scores))
    if not shown:
        return None
    figure = figures.figure(figures.HALF[0], max(figures.HALF[1], 90 + 20 * len(shown)))
    axes = figure.add_subplot()
    for index, (encoder, best) in enumerate(shown.items()):
        colour, dashes = STYLES[index % len(STYLES)]
        trials = np.arange(1, len(best) + 1)
        axes.plot(trials, best, color=colour, dashes=dashes, linewidth=1.8, marker="o", markersize=3, label=encoder)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    selection = words.label(SELECTION_METRIC)
    figures.style(axes, xlabel="Trials", ylabel=f"Best validation {selection}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=FONT, labelcolor=INK)
    caption = "A line that still rises at its end says that more trials would help that method."
    description = f"Best validation {selection} by trial on {where}"
    return Plot(figures.svg(figure, name, description), f"Search on {where}", caption)
