"""The benchmark as a whole: which bars, in which order; its JSON, Markdown, plots and table."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spectran_jax.benchmarks import rows as bars
from spectran_jax.benchmarks.rows import Bar, Row, Settings
from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.machine import describe_machine
from spectran_jax.progress import print_line, stderr_console
from spectran_jax.training.runtime import configure_jax
from spectran_jax.training.workdir import locked
from spectran_jax.writing import write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

FAMILIES = ("training", "scaling", "losses", "decomposition", "ranking", "gpu", "quality", "faults")
"""The files that register bars; their order is the table's."""


def benchmark(
    settings: Settings,
    names: Sequence[str] = (),
    *,
    again: bool = False,
    registry: dict[str, Bar] | None = None,
) -> list[Row]:
    """Measures bars, and writes benchmark.json after each, benchmark.md and the plots into the work directory.

    Args:
      settings: what the flags say.
      names: of the bars; all quick ones if empty, all with `settings.full`.
      again: measure also what benchmark.json holds for the same machine and for the same settings of those that a bar
        reads. A row that can't be measured now takes the place of none that was.
      registry: the bars to choose from; those of this package by default.

    Returns:
      The rows, in the order of the registry, with what benchmark.json held besides.

    Raises:
      InputError: an unknown name, or a work directory that is in use or holds a damaged benchmark.json.
    """
    if registry is None:
        for family in FAMILIES:
            importlib.import_module(f"spectran_jax.benchmarks.{family}")
        registry = bars.REGISTRY
    wanted = bars.chosen(names, full=settings.full, registry=registry)
    console = stderr_console()
    with locked(settings.workdir):
        configure_jax(Config().replace(data_dir=str(settings.workdir / "cache")))
        machine = describe_machine()
        path = settings.workdir / "benchmark.json"
        found = {row.name: row for row in read(path)}
        for bar in wanted:
            held = found.get(bar.name)
            if held is not None and not again and held.stands_for(bars.pending(bar, settings, machine)):
                continue
            print_line(console, f"{bar.name}: {bar.what}")
            row = bars.measure(bar, settings, machine)
            print_line(console, f"{bar.name}: {number(row.ratio)} ({row.bar}): {row.verdict}. {row.note}")
            if row.met is None and held is not None and held.ratio is not None:
                print_line(console, f"{bar.name}: stays as it was measured before.")
                continue
            found[bar.name] = row
            order = [name for name in registry if name in found] + [name for name in found if name not in registry]
            found = {name: found[name] for name in order}
            write_json(path, {"machine": machine, "rows": [dataclasses.asdict(row) for row in found.values()]})
        results = list(found.values())
        write_text(settings.workdir / "benchmark.md", markdown(results))
        for name, svg in plots(results).items():
            write_text(settings.workdir / f"{name}.svg", svg)
    return results


def missed(results: Sequence[Row], machine: Mapping[str, Any]) -> list[str]:
    """Names of the rows that miss their bar on this machine, with this code; those that could not run do not."""
    return [row.name for row in results if row.met is False and row.machine == machine]


def read(path: Path) -> list[Row]:
    """The rows of a benchmark.json; none where there is no file.

    Raises:
      InputError: for a file that holds something else.
    """
    try:
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no file of this benchmark; remove it, or take another --workdir.") from None


def number(value: float | None) -> str:
    """Three or four digits that count; a dash for none."""
    if value is None:
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.2e}"


def cells(row: Row) -> list[str]:
    """The cells of a row as people read them."""
    spread = "–" if row.spread is None else " to ".join(number(value) for value in row.spread)
    figures = [number(value) for value in (row.ours, row.other, row.ratio)]
    return [row.name, row.what, *figures, row.bar, row.verdict, spread, row.note]


HEADINGS = ("Row", "What", "Ours", "Other", "Ratio", "Limit", "Met", "Spread", "Note")


def markdown(results: Sequence[Row]) -> str:
    """The rows as a Markdown table, below the machines that they were measured on; each names its own, if several."""
    machines: list[Mapping[str, Any]] = []
    for row in results:
        if row.machine not in machines:
            machines.append(row.machine)
    several = len(machines) > 1
    lines = [
        f"{f'- {i}: ' if several else ''}Measured on {m['processor']}, {m['cores']} cores, {m['platform']}, Python "
        f"{m['python']}, JAX {m['jax']} on {m['devices']} x {m['device']}, code {m['code']}."
        for i, m in enumerate(machines, 1)
    ]
    headings = [*HEADINGS, "Machine"] if several else HEADINGS
    lines += ["", "| " + " | ".join(headings) + " |", "|---|---|---:|---:|---:|---|---|---|---|" + "---|" * several]
    for row in results:
        shown = [*cells(row), str(machines.index(row.machine) + 1)] if several else cells(row)
        lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in shown) + " |")
    return "\n".join(lines) + "\n"


def table(results: Sequence[Row]) -> Table:
    """The rows for the terminal; notes are in benchmark.md."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title="Performance bars", box=box.SIMPLE_HEAVY, title_style="bold")
    for heading in HEADINGS:
        right = heading in ("Ours", "Other", "Ratio")
        made.add_column(heading, justify="right" if right else "left", no_wrap=right or heading in ("Row", "Limit"))
    for row in results:
        style = {True: "green", False: "bold red", None: "dim"}[row.met]
        made.add_row(*(Text(c, style if h == "Met" else "") for h, c in zip(HEADINGS, cells(row), strict=True)))
    return made


def fitted_exponent(points: Sequence[Sequence[float]]) -> float:
    """b of y = a x^b by least squares on logarithms."""
    x, y = np.log(np.asarray(points, np.float64)).T
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def plots(results: Sequence[Row]) -> dict[str, str]:
    """One log-log SVG a curve of the rows, by name, with the fitted exponent of each series in the legend."""
    return {name: _plot(name, curve) for row in results for name, curve in row.curves.items()}


def _plot(name: str, curve: Mapping[str, Any]) -> str:
    from spectran_jax.report import figures

    figure = figures.figure(*figures.HALF)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    for (label, points), colour in zip(curve["series"].items(), (figures.BLUE, figures.INK), strict=False):
        x, y = np.asarray(points, np.float64).T
        text = f"{label}: exponent {fitted_exponent(points):.2f}"
        axes.plot(x, y, "o-", color=colour, linewidth=1.8, markersize=4, label=text)
        low, high = axes.get_ylim()
        middle = (low * high) ** 0.5  # a decade at least, so that noise does not look like a slope
        axes.set_ylim(min(low, middle / 3.2), max(high, middle * 3.2))
    figures.style(axes, xlabel=curve["xlabel"], ylabel=curve["ylabel"])
    figures.legend(axes)
    axes.set_title(curve["title"], fontsize=figures.FONT, color=figures.INK)
    return figures.standalone(figures.svg(figure, name, curve["title"]))
