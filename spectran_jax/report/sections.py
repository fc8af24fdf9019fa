"""What a report says of the model: sections, each a function from the data to HTML, empty where it has nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from spectran_jax.report import html, plots, spectral_plots, words
from spectran_jax.report.data import Recommended, ReportData, UserExample
from spectran_jax.report.html import text
from spectran_jax.report.statistics import energy_beyond, live_entries

HEADLINE = ("ndcg@10", "hr@10", "ndcg@20", "hr@20", "mrr")
SLICE_METRICS = ("ndcg@10", "hr@10", "ndcg@20", "hr@20")


def headline(data: ReportData) -> str:
    """The metrics that a table of a paper would show; validation where the test set was not read."""
    chosen = data.metrics.get("test") or data.metrics.get("valid") or {}
    name = "test" if data.metrics.get("test") else "validation"
    other = data.metrics.get("valid") or {} if name == "test" else {}
    return html.cards(
        (
            words.label(key),
            words.metric(key, chosen[key]),
            f"{name}; validation {words.metric(key, other[key])}" if key in other else name,
        )
        for key in HEADLINE
        if key in chosen
    )


def lead(data: ReportData) -> str:
    """One line: what was trained, on what."""

    def value(section: str, name: str) -> str:
        return str(data.config.get(section, {}).get(name, ""))

    dimension, seed = value("encoder", "dimension"), value("training", "seed")
    parts = [
        value("data", "dataset"),
        value("encoder", "item_encoder"),
        value("backbone", "backbone"),
        value("objective", "loss"),
        f"d = {dimension}" if dimension else "",
        f"seed {seed}" if seed else "",
    ]
    return " · ".join(text(part) for part in parts if part)


def results(data: ReportData) -> str:
    """All metrics, those of the slices of the test users, and what the data holds."""
    right = _slices(data.metrics.get("test_slices")) + _dataset(data.dataset)
    return html.section(
        "results",
        "Metrics and data",
        "Every target is ranked against the whole catalogue; ties count against the model.",
        html.grid("two", _metrics(data.metrics), f'<div class="stack">{right}</div>' if right else ""),
    )


def _metrics(metrics: Mapping[str, Any]) -> str:
    splits = words.splits(metrics)
    if not splits:
        return ""
    names = words.ordered_metrics(*splits.values())
    rows, groups = [], []
    for i, name in enumerate(names):
        if i and name.partition("@")[0] != names[i - 1].partition("@")[0]:
            groups.append(i)
        cells = [words.metric(name, values[name]) if name in values else "" for values in splits.values()]
        rows.append([text(words.label(name)), *cells])
    head = ["Metric", *splits]
    return html.panel(html.table(head, rows, caption="By cut-off", numeric=range(1, len(head)), groups=groups))


def _slices(slices: Mapping[str, Mapping[str, Any]] | None) -> str:
    if not slices:
        return ""
    names = [name for name in SLICE_METRICS if any(name in values for values in slices.values())]
    rows = []
    for title, values in slices.items():
        cells = [words.metric(name, values[name]) if name in values else "–" for name in names]
        users = text(words.number(values["users"])) if "users" in values else ""
        rows.append([text(words.label(title)), users, *cells])
    head = ["Target is", "Users", *(words.label(name) for name in names)]
    caption = "By popularity of the target, test"
    note = '<p class="muted small">Head, middle and tail by training interactions; cold is never seen in training.</p>'
    return html.panel(html.table(head, rows, caption=caption, numeric=range(1, len(head))) + note)


def _dataset(dataset: Mapping[str, Any]) -> str:
    flat: dict[str, Any] = {}
    for name, value in dataset.items():
        nested = value if isinstance(value, Mapping) else None
        flat |= {name: value} if nested is None else {f"{name}, {part}": count for part, count in nested.items()}
    facts = "".join(
        f"<dt>{text(words.label(name))}</dt><dd{_mono(value)}>{text(_fact(value))}</dd>"
        for name, value in flat.items()
        if isinstance(value, (str, int, float, np.number))
    )
    return html.panel(f'<h3>Data</h3><dl class="facts">{facts}</dl>') if facts else ""


def _fact(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else words.number(value)


def _mono(value: object) -> str:
    """Digests and the like are set in small, fixed-width letters."""
    return ' class="mono"' if isinstance(value, str) and len(value) > 24 else ""


def training(data: ReportData) -> str:
    """Loss and validation metrics over steps."""
    shown = [plots.loss(data.history), plots.validation(data.history)]
    return html.section(
        "training", "Training", "", html.grid("two", *(html.plot(plot) for plot in shown if plot is not None))
    )


def spectrum(data: ReportData) -> str:
    """Singular values of the text and of what was learned."""
    d = data.config.get("encoder", {}).get("dimension")
    cut = bool(data.config.get("spectrum", {}).get("max_rank"))
    shown = [
        spectral_plots.text_spectrum(data.text_singular_values, d if isinstance(d, int) else None, cut=cut),
        spectral_plots.item_spectrum(data.item_singular_values, data.initial_item_singular_values),
    ]
    return html.section(
        "spectrum",
        "Singular spectrum",
        "Effective rank is the exponential of the entropy of the singular values: the number of directions in use.",
        html.grid("two", *(html.plot(plot) for plot in shown if plot is not None)),
    )


def adapter(data: ReportData) -> str:
    """What the spectral adapter learned: attention, position encoding, and both through training."""
    entries = []
    if data.attention is not None and data.attention.size:
        entries.append(("Live entries", words.percent(live_entries(data.attention)), "of the spectral attention"))
        beyond = words.percent(energy_beyond(data.attention))
        entries.append(("Attention beyond d", beyond, "of its energy, past the first d components"))
        if data.diagonal is not None and np.square(data.diagonal).sum() > 0:
            ratio = float(np.square(data.attention).sum() / np.square(data.diagonal).sum())
            entries.append(("Attention : diagonal", f"{ratio:.3g}", "ratio of their energies"))
    if data.weights is not None and data.weights.size:
        entries.append(
            ("W beyond d", words.percent(energy_beyond(data.weights)), "of its energy, past the first d components")
        )
    if data.threshold is not None:
        entries.append(("Threshold λ", f"{data.threshold:.3g}", "of the Softshrink; smaller entries are dead"))
    attention = spectral_plots.attention_map(data.attention)
    position = spectral_plots.position_encoding(data.taylor, data.sigma, data.diagonal)
    small = [html.plot(plot) for plot in ([position] if position else []) + plots.through_training(data.history)]
    content = [
        html.cards(entries, small=True),
        html.plot(attention, wide=True) if attention else "",
        html.grid("two", *small),
    ]
    return html.section(
        "adapter",
        "What the adapter learned",
        "Each output dimension is a weighted sum of spectral components: sparse attention over all of them, plus a "
        "learned weight of the singular value on the first d.",
        '<div class="stack">' + "".join(content) + "</div>" if any(content) else "",
    )


def examples(data: ReportData) -> str:
    """Users with their histories and recommendations in words."""
    return html.section(
        "examples",
        "Users and recommendations",
        "The newest items of a history, the item that came next, and what the model recommends without having seen it.",
        html.grid("two", *(_example(example) for example in data.examples)),
    )


def _example(example: UserExample) -> str:
    found = any(Recommended(*entry).hit for entry in example.recommendations)
    history = "".join(f'<li><span aria-hidden="true">·</span>{_title(title)}</li>' for title in example.history)
    recommended = "".join(_recommended(place, *entry) for place, entry in enumerate(example.recommendations, 1))
    pill = f'<span class="pill{" hit" if found else ""}">target ranked {text(words.number(example.rank))}</span>'
    return (
        f'<article class="panel example"><header><h3>User {text(example.user)}</h3>{pill}</header>'
        f"<h4>History, newest last</h4><ol>{history}</ol>"
        f'<h4>Came next</h4><div class="next" dir="auto">{text(example.target)}</div>'
        f"<h4>Recommended</h4><ol>{recommended}</ol></article>"
    )


def _recommended(place: int, title: str, score: float, hit: bool = False) -> str:
    attributes, mark = (' class="hit"', "✓ hit ") if hit else ("", "")
    shown = f'<span class="score">{mark}{score:.3f}</span>'
    return f"<li{attributes}><span>{place}</span>{_title(title)}{shown}</li>"


def _title(title: str) -> str:
    """An item's title, cut after two lines; whole on hover."""
    return f'<span class="title" dir="auto" title="{text(title)}">{text(title)}</span>'
