"""Plots of spectra and of what the adapter learned: each a function from arrays to a `Plot`, or to None.

Importing this module imports no Matplotlib; drawing does.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from spectran_jax.report import figures, words
from spectran_jax.report.figures import BLUE, FONT, GREEN, HALF, INK, MUTED, ORANGE, WIDE, Plot
from spectran_jax.report.statistics import bin_columns, effective_rank, energy_beyond, live_entries, live_share

MOST_COLUMNS = 480
"""Of the attention map: two pixels a column at full width."""


def _positive(values: Float[np.ndarray, "n"] | None) -> Float[np.ndarray, "n"] | None:
    """Finite, positive singular values over the largest; None where there is none."""
    if values is None:
        return None
    kept = np.sort(np.asarray(values, np.float64)[np.isfinite(values) & (np.asarray(values) > 0)])[::-1]
    return kept / kept[0] if len(kept) else None


def text_spectrum(singular_values: Float[np.ndarray, "r"] | None, d: int | None, *, cut: bool = False) -> Plot | None:
    """The singular values of the text embeddings; the first d, where a truncated SVD stops, are marked.

    Where the spectrum was `cut` (--max_rank), shares are of the components that were kept.
    """
    values = _positive(singular_values)
    if values is None:
        return None
    figure = figures.figure(*HALF)
    axes = figure.add_subplot()
    axes.plot(np.arange(1, len(values) + 1), values, color=BLUE, linewidth=1.8, marker="o" if len(values) < 3 else None)
    axes.set_yscale("log")
    if len(values) > 600:
        axes.set_xscale("log")
    beyond = ""
    if d is not None and d < len(values):
        axes.axvline(d, color=MUTED, linewidth=1.2, linestyle=(0, (3, 3)))
        # The curve falls from left to right, so that the upper right is free.
        axes.annotate(
            f"d = {d}",
            (d, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=FONT,
            color=INK,
        )
        energy = float(np.square(values[d:]).sum() / np.square(values).sum())
        whole = "the variance of the kept components" if cut else "the text's variance"
        beyond = f" {words.percent(energy)} of {whole} lies beyond the first d = {d}."
    figures.style(axes, xlabel="Component", ylabel="Singular value / largest")
    caption = (
        f"{len(values):,} components of effective rank {effective_rank(values):.1f}.{beyond} "
        "A slow fall means that much of the text is out of reach for the first few components."
    )
    return Plot(figures.svg(figure, "text-spectrum", "Singular values of the text embeddings"), "Text", caption)


def item_spectrum(
    singular_values: Float[np.ndarray, "d"] | None, initial: Float[np.ndarray, "d"] | None
) -> Plot | None:
    """The singular values of the centred item vectors, after and before training."""
    values, before = _positive(singular_values), _positive(initial)
    if values is None:
        return None
    figure = figures.figure(*HALF)
    axes = figure.add_subplot()
    if before is not None:
        steps = np.arange(1, len(before) + 1)
        axes.plot(steps, before, color=MUTED, linewidth=1.6, linestyle=(0, (5, 2)), label="before training")
    axes.plot(np.arange(1, len(values) + 1), values, color=ORANGE, linewidth=1.8, label="learned")
    axes.set_yscale("log")
    low = min(float(v.min()) for v in (values, before) if v is not None)
    axes.set_ylim(min(0.1, low / 1.5), 1.3)
    figures.style(axes, xlabel="Component", ylabel="Singular value / largest")
    if before is not None:
        figures.legend(axes, "lower left")
    was = "" if before is None else f" (before training: {effective_rank(before):.1f})"
    caption = (
        f"Effective rank {effective_rank(values):.1f} of {len(values)}{was}. "
        "A curve that drops early shows collapse: few directions do the work of all."
    )
    svg = figures.svg(figure, "item-spectrum", "Singular values of the learned item vectors")
    return Plot(svg, "Learned item vectors", caption)


def attention_map(attention: Float[np.ndarray, "d r"] | None, name: str = "attention") -> Plot | None:
    """phi(Z) as a heat map over the spectrum, and above it the live share of each component."""
    if attention is None or not attention.size:
        return None
    from matplotlib.ticker import MaxNLocator

    attention = np.nan_to_num(np.asarray(attention, np.float64))
    d, r = attention.shape
    binned, width = bin_columns(attention, MOST_COLUMNS)
    magnitudes = np.abs(binned[binned != 0])
    largest = float(np.quantile(magnitudes, 0.995)) if magnitudes.size else 1.0
    figure = figures.figure(*WIDE)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 4), width_ratios=(1, 0.015))
    extent = (0.5, 0.5 + binned.shape[1] * width, d + 0.5, 0.5)

    axes = figure.add_subplot(grid[1, 0])
    axes.imshow(figures.diverging(binned, largest), extent=extent, aspect="auto", interpolation="none", zorder=2)
    figures.style(axes, xlabel="Spectral component, from the largest singular value", ylabel="Output dimension")
    axes.grid(False)
    axes.set_xlim(0.5, r + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))

    share = figure.add_subplot(grid[0, 0], sharex=axes)
    live = 100 * live_share(attention)
    bins = np.pad(live, (0, -r % width), constant_values=np.nan).reshape(-1, width)
    edges = 0.5 + width * np.arange(len(bins) + 1)
    share.stairs(np.nanmean(bins, axis=1), np.minimum(edges, r + 0.5), fill=True, color=GREEN)
    share.set_ylim(0, max(1.0, float(live.max()) * 1.1))
    figures.style(share, ylabel="Live, %", grid="y")
    share.tick_params(labelbottom=False)
    share.yaxis.set_major_locator(MaxNLocator(3))
    if d < r:
        for panel in (axes, share):
            panel.axvline(d + 0.5, color=INK, linewidth=1.1, linestyle=(0, (3, 3)), zorder=3)
        share.text(
            d + 0.5,
            1.04,
            f"d = {d}",
            color=INK,
            fontsize=FONT,
            ha="center",
            va="bottom",
            transform=share.get_xaxis_transform(),
        )

    scale = figure.add_subplot(grid[1, 1])
    ramp = np.linspace(largest, -largest, 129)[:, None]
    scale.imshow(
        figures.diverging(ramp, largest), extent=(0, 1, -largest, largest), aspect="auto", interpolation="none"
    )
    figures.style(scale)
    scale.grid(False)
    scale.set_xticks([])
    scale.yaxis.tick_right()
    scale.yaxis.set_major_locator(MaxNLocator(4, symmetric=True))
    for spine in scale.spines.values():
        spine.set_visible(False)

    together = f" Each column shows the strongest of {width} neighbours." if width > 1 else ""
    beyond = (
        f" {words.percent(energy_beyond(attention))} of the attention's energy lies right of the dashed line, beyond "
        "the first d components, where a truncated SVD sees nothing."
    ) * (d < r)
    caption = (
        f"{words.percent(live_entries(attention))} of the entries are live; dead ones are blank.{beyond} Orange adds, "
        f"blue subtracts.{together}"
    )
    svg = figures.svg(figure, name, "Heat map of the spectral attention, output dimensions by components")
    return Plot(svg, "Attention over the spectrum", caption)


def position_encoding(
    taylor: Float[np.ndarray, "P1"] | None,
    sigma: Float[np.ndarray, "r"] | None,
    diagonal: Float[np.ndarray, "d"] | None,
    name: str = "position",
) -> Plot | None:
    """p(sigma) over sigma, the first d components as dots, the start p = 1 dashed."""
    if taylor is None or sigma is None or not len(sigma):
        return None
    powers = np.arange(len(taylor))
    d = len(sigma) if diagonal is None else len(diagonal)
    head = np.asarray(sigma[:d], np.float64)
    dots = (head[:, None] ** powers) @ taylor if diagonal is None else np.asarray(diagonal, np.float64)[: len(head)]
    line = np.linspace(min(0.0, float(head.min())), 1.0, 200)
    figure = figures.figure(*HALF)
    axes = figure.add_subplot()
    axes.axhline(1.0, color=MUTED, linewidth=1.4, linestyle=(0, (5, 3)), label="start, p = 1")
    axes.plot(line, (line[:, None] ** powers) @ taylor, color=BLUE, linewidth=1.8, label="learned p(σ)")
    axes.plot(head, dots, "o", color=ORANGE, markersize=4, label=f"first {len(head)} components", linestyle="none")
    figures.style(axes, xlabel="Normalised singular value σ", ylabel="Importance p(σ)")
    axes.margins(y=0.15)
    figures.legend(axes)
    strongest, weakest = float(dots[0]), float(dots[-1])
    if words.number(abs(strongest)) == words.number(abs(weakest)):
        trend = "made no difference between them"
    elif abs(strongest) > abs(weakest):
        trend = "gave more weight to the principal components"
    else:
        trend = "gave more weight to the weaker of the first d components"
    caption = (
        f"p is {words.number(strongest)} at the largest singular value and {words.number(weakest)} at the last of the "
        f"first {len(head)}: training {trend}. Flat at 1 is the SVD, weighted by --spectral_power."
    )
    svg = figures.svg(figure, name, "Learned importance over the normalised singular value")
    return Plot(svg, "Spectral position encoding", caption)
