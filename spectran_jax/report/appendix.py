"""What a report says of the run: parameters, time, configuration and the command that makes it again."""

from __future__ import annotations

import shlex
from typing import Any

from spectran_jax.config import fields
from spectran_jax.report import html, words
from spectran_jax.report.data import ReportData
from spectran_jax.report.html import text
from spectran_jax.report.terminal import shape_text


def configuration(data: ReportData) -> str:
    """The command, the fields that differ from their defaults, then all of them."""
    defaults = {(section, field.name): field for section, field in fields()}
    changed = []
    for section, entries in data.config.items():
        for name, value in entries.items():
            field = defaults.get((section, name))
            if field is None or field.default != value:
                default = "" if field is None else _code(field.default)
                changed.append([_code(f"--{name}"), _code(value), default, text(_help(field))])
    parts = []
    if data.command:
        parts.append('<p class="intro">The same command, with another workdir, makes this run again.</p>')
        parts.append(f"<pre><code>{text(_folded(data.command))}</code></pre>")
    if changed:
        head = ["Flag", "Value", "Default", "Meaning"]
        parts.append(
            html.details(
                f'Changed from the defaults <span class="muted">({len(changed)})</span>',
                html.table(head, changed),
                opened=True,
            )
        )
    for section, entries in data.config.items():
        rows = [
            [_code(f"--{name}"), _code(value), text(_help(defaults.get((section, name))))]
            for name, value in entries.items()
        ]
        parts.append(html.details(text(words.label(section)), html.table(["Flag", "Value", "Meaning"], rows)))
    return html.section("configuration", "Configuration", "", *parts)


def _folded(command: str) -> str:
    """A long command over several lines of shell, one argument each."""
    try:
        words_of_it = [shlex.quote(word) for word in shlex.split(command)]
    except ValueError:  # an open quote: shown as it came
        return command
    start = next((i for i, word in enumerate(words_of_it) if word.startswith("--")), len(words_of_it))
    if len(command) <= 80 or start == len(words_of_it):
        return command
    return " \\\n    ".join([" ".join(words_of_it[:start]), *words_of_it[start:]])


def _help(field: Any) -> str:
    return "" if field is None else field.metadata.get("help", "")


def _code(value: object) -> str:
    shown = '""' if value == "" else str(value).lower() if isinstance(value, bool) else str(value)
    return f"<code>{text(shown)}</code>"


def cost(data: ReportData) -> str:
    """Parameters and time."""
    return html.section("cost", "Parameters and time", "", _timings(data), _parameters(data))


def _timings(data: ReportData) -> str:
    if not data.timings:
        return ""
    longest = max(max(data.timings.values()), 1e-9)
    rows = [
        [
            text(words.label(name)),
            text(words.seconds(value)),
            f'<div class="bar" style="width: {100 * max(value, 0) / longest:.1f}%"></div>',
        ]
        for name, value in data.timings.items()
    ]
    speed = (data.metrics.get("train") or {}).get("examples_per_second")
    note = (
        f' <span class="muted">Training ran at {text(words.number(speed))} examples per second.</span>' if speed else ""
    )
    return html.panel(html.table(["Phase", "Time", ""], rows, caption="Time" + note, numeric=[1], classes="bars"))


def _parameters(data: ReportData) -> str:
    if not data.parameters:
        return ""
    rows = [
        [_code(name), text(shape_text(shape)), text(dtype), f"{size:,}", text(sharding)]
        for name, shape, dtype, size, sharding in data.parameters
    ]
    total = sum(size for _, _, _, size, _ in data.parameters)
    groups = ", ".join(
        f"{words.label(name).lower()} {words.number(count)}"
        for name, count in (data.metrics.get("parameters") or {}).items()
        if name != "total"
    )
    summary = f'{total:,} parameters in {words.count(len(rows), "array")} <span class="muted">{text(groups)}</span>'
    head = ["Name", "Shape", "Type", "Size", "Sharding"]
    return html.details(summary, html.table(head, rows, numeric=[3], foot=["Total", "", "", f"{total:,}", ""]))


def footer(data: ReportData) -> str:
    """The digests under which two runs can be compared."""
    lines = (("Protocol", "protocol"), ("Digest of the parameters", "digest"))
    shown = [
        f'<p>{title}: <span class="mono">{text(data.metrics[key])}</span></p>'
        for title, key in lines
        if data.metrics.get(key)
    ]
    return "".join(shown)
