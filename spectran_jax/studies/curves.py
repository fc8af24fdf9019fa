"""Plots that several studies share: lines and dots of many methods, and a map of steps by components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from spectran_jax.report import figures
from spectran_jax.report.figures import BLUE, INK, MUTED, STYLES, WIDE, Plot
from spectran_jax.studies.tables import Spread

_MARKERS = "os^D"


class Series(NamedTuple):
    """Points of one line."""

    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    """Standard deviation at each point, drawn as a bar; NaN draws none."""

    @classmethod
    def over_seeds(cls, found: Mapping[Any, Spread]) -> Series:
        """The means of some points, by abscissa, and bars where there are several seeds."""
        return cls(list(found), [value.mean for value in found.values()], bars(found.values()))


def bars(values: Iterable[Spread]) -> list[float] | None:
    """Lengths of error bars: standard deviations, NaN where there is one run, None where no point has more."""
    stds = [np.nan if value.std is None else value.std for value in values]
    return stds if not np.isnan(stds).all() else None


def told_bars(values: Iterable[Spread]) -> str:
    """What points with `bars` show, in words."""
    return "one seed" if bars(values) is None else "mean over seeds; the bars are one standard deviation"


def lines(
    name: str,
    title: str,
    caption: str,
    series: Mapping[str, Series],
    *,
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    yscale: str = "linear",
    ticks: Mapping[float, str] | None = None,
    markers: bool = True,
    size: tuple[int, int] = WIDE,
    legend: bool = True,
    joined: bool = True,
) -> Plot:
    """One line a method, told apart by colour, dash and marker together, with a legend beside the plot.

    Args:
      name: unique on the page.
      title: of the plot.
      caption: what to look for.
      series: lines by label; empty ones are left out.
      xlabel: of the abscissa.
      ylabel: of the ordinate.
      xscale: linear or log.
      yscale: linear or log.
      ticks: values of the abscissa to mark and what is written there, instead of round ones.
      markers: whether points are marked.
      size: width and height in CSS pixels.
      legend: whether lines are named.
      joined: whether a line joins the points of a method.
    """
    figure = figures.figure(*size)
    axes = figure.add_subplot()
    for i, (label, line) in enumerate((label, line) for label, line in series.items() if len(line.x)):
        colour, dashes = STYLES[i % len(STYLES)]
        axes.errorbar(
            line.x,
            line.y,
            yerr=line.spread,
            color=colour,
            linestyle="none" if not joined else (0, dashes) if dashes else "solid",
            marker=_MARKERS[i % len(_MARKERS)] if markers or len(line.x) == 1 else None,
            markersize=4,
            linewidth=1.8,
            elinewidth=1.1,
            capsize=3,
            label=label,
        )
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    figures.style(axes, xlabel=xlabel, ylabel=ylabel)
    if ticks:
        from matplotlib.ticker import NullLocator

        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=figures.FONT, labelcolor=INK)
    return Plot(figures.svg(figure, name, title), title, caption)


def energy_map(
    name: str, title: str, caption: str, steps: Sequence[float], energy: Float[np.ndarray, "n bins"], width: int, d: int
) -> Plot:
    """Share of energy by component over the steps of training, strong where much of it lies.

    Args:
      name: unique on the page.
      title: of the plot.
      caption: what to look for.
      steps: of the n validations.
      energy: shares, neighbours together in bins of `width` components.
      width: of a bin.
      d: where a truncated SVD stops, marked.
    """
    figure = figures.figure(*WIDE)
    axes = figure.add_subplot()
    validations, bins = energy.shape
    shown = np.sqrt(energy)  # so that a tail of a few per cent is seen beside the head
    image = figures.diverging(shown.T, float(shown.max()) or 1.0)
    extent = (0.5, validations + 0.5, bins * width + 0.5, 0.5)
    axes.imshow(image, extent=extent, aspect="auto", interpolation="none", zorder=2)
    if d < bins * width:
        axes.axhline(d + 0.5, color=MUTED, linewidth=1.2, linestyle=(0, (3, 3)), zorder=3)
    figures.style(axes, xlabel="Step of the validation", ylabel="Spectral component")
    axes.grid(False)
    marked = np.unique(np.linspace(0, validations - 1, min(validations, 8)).astype(int))
    axes.set_xticks(marked + 1, [f"{steps[i]:,.0f}" for i in marked])
    return Plot(figures.svg(figure, name, title), title, caption)


def dots(
    name: str, title: str, caption: str, values: Mapping[str, Spread], *, xlabel: str, reference: float | None = None
) -> Plot:
    """One row a method: its mean as a dot with a bar of one standard deviation (`bars`), a line down from `reference`.

    Args:
      name: unique on the page.
      title: of the plot.
      caption: what to look for.
      values: by label, from the top.
      xlabel: of the abscissa.
      reference: a value to compare with, marked.
    """
    figure = figures.figure(figures.HALF[0], 90 + 22 * len(values))
    axes = figure.add_subplot()
    at = np.arange(len(values))[::-1]
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=1.2, linestyle=(0, (3, 3)))
    means, stds = [v.mean for v in values.values()], bars(values.values())
    axes.errorbar(means, at, xerr=stds, fmt="o", color=BLUE, ecolor=INK, elinewidth=1.2, capsize=3, markersize=5)
    figures.style(axes, xlabel=xlabel, grid="x")
    axes.set_yticks(at, list(values), fontsize=figures.FONT, color=INK)
    return Plot(figures.svg(figure, name, title), title, caption)
