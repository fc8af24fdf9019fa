"""Plots over the steps of training: each a function from the history to a `Plot`, or to None where it has nothing.

Importing this module imports no Matplotlib; drawing does.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectran_jax.metrics import SELECTION_METRIC
from spectran_jax.report import figures, words
from spectran_jax.report.figures import BLUE, FONT, GREEN, HALF, INK, MUTED, ORANGE, Plot

History = Sequence[Mapping[str, Any]]


def series(history: History, kind: str | None, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one key of the history, without the lines that lack it or hold no finite number."""
    steps, values = [], []
    for line in history:
        value = line.get(key)
        if kind is not None and line.get("kind") != kind:
            continue
        if isinstance(value, numbers.Real) and math.isfinite(value) and isinstance(line.get("step"), numbers.Real):
            steps.append(float(line["step"]))
            values.append(float(value))
    return steps, values


def loss(history: History) -> Plot | None:
    """The training loss over steps."""
    steps, values = series(history, "train", "loss")
    if not steps:
        return None
    figure = figures.figure(*HALF)
    axes = figure.add_subplot()
    axes.plot(steps, values, color=BLUE, linewidth=1.8, marker=None if len(steps) > 1 else "o")
    figures.style(axes, xlabel="Step", ylabel="Training loss")
    caption = (
        f"From {words.number(values[0])} to {words.number(values[-1])} over {words.number(int(steps[-1]))} steps. "
        "A curve that still falls at its end asks for more epochs; one that rises, for a lower learning rate."
    )
    return Plot(figures.svg(figure, "loss", "Training loss over steps"), "Loss", caption)


def validation(history: History) -> Plot | None:
    """NDCG@20 and HR@20 on the validation set over steps, the best NDCG@20 marked."""
    steps, ndcg = series(history, "valid", SELECTION_METRIC)
    if not steps:
        return None
    figure = figures.figure(*HALF)
    axes = figure.add_subplot()
    recall_steps, recall = series(history, "valid", "hr@20")
    small: dict[str, Any] = {"marker": "o", "markersize": 3.0} if len(steps) <= 40 else {}
    if recall:
        axes.plot(recall_steps, recall, color=ORANGE, linewidth=1.8, linestyle=(0, (5, 2)), label="HR@20", **small)
    axes.plot(steps, ndcg, color=BLUE, linewidth=1.8, label="NDCG@20", **small)
    best = int(np.argmax(ndcg))
    axes.plot([steps[best]], [ndcg[best]], "o", color=INK, markersize=7, fillstyle="none", markeredgewidth=1.8)
    top = max([*ndcg, *recall])
    axes.set_ylim(0, top * 1.12 if top > 0 else 1)
    late = steps[best] > (steps[0] + steps[-1]) / 2
    axes.annotate(
        f"best {ndcg[best]:.4f}",
        (steps[best], ndcg[best]),
        xytext=(-6 if late else 6, 6),
        textcoords="offset points",
        ha="right" if late else "left",
        va="bottom",  # everything near the best lies below it
        fontsize=FONT,
        color=INK,
    )
    figures.style(axes, xlabel="Step", ylabel="Validation metric")
    figures.legend(axes, "lower right" if min(ndcg[-1:] + recall[-1:]) > top / 2 else "upper left")
    after = len(ndcg) - 1 - best
    place = {0: "the last validation: more epochs may help", 1: "with one validation after it"}
    caption = (
        f"The best NDCG@20, {ndcg[best]:.4f}, was reached at step {words.number(int(steps[best]))} (ringed), "
        f"{place.get(after, f'with {after} validations after it')}. Its parameters are the ones that are tested."
    )
    return Plot(figures.svg(figure, "validation", "Validation NDCG@20 and HR@20 over steps"), "Validation", caption)


_THROUGH_TRAINING = (
    ("attention_live", "Live attention", "Share of live entries, %", 100.0, GREEN, False,
     "Zero would be dead: no gradient reaches the attention."),
    ("attention_energy", "Energy of the attention", "Energy over the diagonal's", 1.0, BLUE, True,
     "Far above 1 the attention drowns the principal diagonal."),
    ("semantic_to_id", "Text against IDs", "Scale of E_s over E_id", 1.0, ORANGE, True,
     "Above 1 the text decides more of an item vector than its ID does."),
)  # fmt: skip
"""Key of the history, title, label of the axis, factor, colour, whether a log axis, what to look for."""


def through_training(history: History) -> list[Plot]:
    """Live share, energy ratio and scale ratio over steps: those the history has."""
    plots = []
    for key, title, ylabel, factor, colour, log, look in _THROUGH_TRAINING:
        steps, values = series(history, None, key)
        if log:
            kept = [(s, v) for s, v in zip(steps, values, strict=True) if v > 0]
            steps, values = [s for s, _ in kept], [v for _, v in kept]
        if not steps:
            continue
        shown = np.asarray(values) * factor
        figure = figures.figure(*HALF)
        axes = figure.add_subplot()
        axes.plot(steps, shown, color=colour, linewidth=1.8, marker="o" if len(steps) == 1 else None)
        low, high = float(shown.min()), float(shown.max())
        if log:
            axes.set_yscale("log")
            # At least half a decade either way, so that noise does not look like a trend.
            middle = math.sqrt(low * high)
            axes.set_ylim(min(low / 1.3, middle / 3.2), max(high * 1.3, middle * 3.2))
            if axes.get_ylim()[0] < 1.0 < axes.get_ylim()[1]:
                axes.axhline(1.0, color=MUTED, linewidth=1.1, linestyle=(0, (3, 3)))
        else:
            axes.set_ylim(0, high * 1.15 if high > 0 else 1)
        figures.style(axes, xlabel="Step", ylabel=ylabel)
        unit = " %" if factor == 100 else ""
        change = f"From {shown[0]:.3g} to {shown[-1]:.3g}{unit}. "
        svg = figures.svg(figure, key.replace("_", "-"), f"{title} over steps")
        plots.append(Plot(svg, title, change + look))
    return plots
