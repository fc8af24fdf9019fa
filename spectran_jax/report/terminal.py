"""Tables for the terminal, with Rich; print them to stdout, as they are results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spectran_jax.report import words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from spectran_jax.report.data import Parameter


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """The metrics of a run: one row a metric, one column each for validation, test and the slices of the test users.

    Args:
      metrics: the content of metrics.json; `valid`, `test` and `test_slices` are read where they are.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    splits = words.splits(metrics)
    slices = {words.label(name): values for name, values in (metrics.get("test_slices") or {}).items()}
    columns = {**splits, **{f"Test: {name.lower()}": values for name, values in slices.items()}}
    table = Table(title="Full-ranking metrics", box=box.SIMPLE_HEAVY, title_style="bold")
    table.add_column("Metric", no_wrap=True)
    for title in columns:
        table.add_column(Text(title), justify="right", style="bold" if title == "Test" else "")
    for name in words.ordered_metrics(*columns.values()):
        cells = [words.metric(name, values[name]) if name in values else "" for values in columns.values()]
        table.add_row(Text(words.label(name)), *cells)
    return table


def parameter_table(parameters: Sequence[Parameter]) -> Table:
    """Every trained array: name, shape, dtype, size and sharding, with the total below.

    Args:
      parameters: (name, shape, dtype, number of elements, sharding) of each array.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Parameters", box=box.SIMPLE_HEAVY, title_style="bold", show_footer=True)
    table.add_column("Name", footer="Total", overflow="fold")
    table.add_column("Shape")
    table.add_column("Type")
    table.add_column("Size", justify="right", footer=f"{sum(size for _, _, _, size, _ in parameters):,}")
    table.add_column("Sharding", overflow="fold")
    for name, shape, dtype, size, sharding in parameters:
        table.add_row(Text(name), Text(shape_text(shape)), str(dtype), f"{size:,}", Text(str(sharding)))
    return table


def phase_table(seconds: Mapping[str, float]) -> Table:
    """Where the time of a run went.

    Args:
      seconds: wall-clock seconds of the host by phase. The device works while the host reads and copies ahead, so
        `step` is what is left to wait for.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    total = sum(seconds.values())
    table = Table(title="Time", box=box.SIMPLE_HEAVY, title_style="bold", show_footer=True)
    table.add_column("Phase", footer="Total")
    table.add_column("Seconds", justify="right", footer=f"{total:,.2f}")
    table.add_column("Share", justify="right")
    for name, value in seconds.items():
        table.add_row(Text(name), f"{value:,.2f}", f"{value / total:.1%}" if total else "")
    return table


def shape_text(shape: Sequence[int]) -> str:
    """`[3, 4]`, and `[]` for a scalar."""
    return "[" + ", ".join(str(n) for n in shape) + "]"


def print_table(table: Table, console: Console | None = None) -> None:
    """Prints a table, to stdout unless told otherwise; off a terminal it is given the width that it needs."""
    from rich.console import Console

    console = Console() if console is None else console
    if not console.is_terminal:
        console.width = 400
        console.width = max(120, console.measure(table).maximum)
    console.print(table)
