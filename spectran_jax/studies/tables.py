"""A plain table, and how it is written: for the terminal, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spectran_jax.report import words

if TYPE_CHECKING:
    from rich.table import Table as RichTable


class Spread(NamedTuple):
    """A mean over runs and their standard deviation, n - 1; written `0.0402 ± 0.0003`."""

    mean: float
    std: float | None
    """None where there is one run only."""


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and standard deviation (n - 1; None for one value); None for no values."""
    if not values:
        return None
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


Cell = str | int | float | Spread | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as values: text, numbers, spreads, and None for what is not there. Writers choose how they look."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    """A sentence or two below the table: what was counted, what failed."""
    bold: Collection[tuple[int, int]] = ()
    """(row, column) of the cells that stand out."""
    appendix: bool = False
    """Whether it is long and for the record: in files and folded on the page, but not on the terminal."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells for {len(self.columns)} columns: {row}.")

    def numeric(self) -> list[bool]:
        """Whether each column holds numbers only, and at least one."""
        columns = [[cell for cell in column if cell is not None] for column in zip(*self.rows, strict=True)]
        if not columns:
            return [False] * len(self.columns)
        return [bool(column) and not any(isinstance(cell, str) for cell in column) for column in columns]

    def text(self) -> list[list[str]]:
        """The cells as people read them: metrics (by their column's title) with four digits."""
        return [[show(cell, title) for cell, title in zip(row, self.columns, strict=True)] for row in self.rows]


def best_cells(
    rows: Sequence[Sequence[Cell]], compared: Collection[int], columns: Iterable[int]
) -> set[tuple[int, int]]:
    """(row, column) of each column's largest mean among the compared rows: all of equals, none if none is above 0."""
    best = set()
    for column in columns:
        means = {i: cell.mean for i in compared if isinstance(cell := rows[i][column], Spread)}
        best |= {(i, column) for i, mean in means.items() if mean == max(means.values()) > 0}
    return best


def show(cell: Cell, column: str = "") -> str:
    """A cell as people read it."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    name = column.lower().split(" ")[-1]  # "Test NDCG@10" is a metric, too
    if isinstance(cell, Spread):
        return words.metric(name, cell.mean) if cell.std is None else words.spread(name, cell.mean, cell.std)
    return words.metric(name, cell)


def to_terminal(table: Table) -> RichTable:
    """For `rich.print`; what stands out is bold."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(
        title=Text(table.title), caption=Text(table.note) if table.note else None, box=box.SIMPLE_HEAVY,
        title_style="bold", caption_justify="left",
    )  # fmt: skip
    for title, right in zip(table.columns, table.numeric(), strict=True):
        made.add_column(Text(title), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for i, row in enumerate(table.text()):
        made.add_row(*(Text(cell, style="bold" if (i, j) in table.bold else "") for j, cell in enumerate(row)))
    return made


def to_csv(table: Table) -> str:
    """Numbers as they are, unrounded. A column of spreads becomes two, `TITLE` and `TITLE s.d.`.

    Gains, differences and their intervals are text in a table, and stay as they are shown. result.json has those of
    NDCG@10 over all users unrounded: `versus` of a comparison, `variants` of a study of variants.
    """
    spreads = [any(isinstance(row[j], Spread) for row in table.rows) for j in range(len(table.columns))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [t for t, two in zip(table.columns, spreads, strict=True) for t in ([t, f"{t} s.d."] if two else [t])]
    )
    for row in table.rows:
        cells: list[Cell] = []
        for cell, two in zip(row, spreads, strict=True):
            cells += (list(cell) if isinstance(cell, Spread) else [cell, None]) if two else [cell]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return buffer.getvalue()


_MARKDOWN_SPECIAL = re.compile(r"[\\`*<]|\](?=\()|(?<![^\W_])_|_(?![^\W_])")
"""What begins emphasis, code, HTML or a link; an underscore within a word begins nothing."""


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _MARKDOWN_SPECIAL.sub(r"\\\g<0>", text).replace("\n", " ")


def to_markdown(table: Table) -> str:
    """Without the title; the note below it."""

    def escape(text: str) -> str:
        return escape_markdown(text).replace("|", "\\|")

    lines = [
        "| " + " | ".join(map(escape, table.columns)) + " |",
        "|" + "|".join("---:" if right else "---" for right in table.numeric()) + "|",
    ]
    for i, row in enumerate(table.text()):
        cells = [f"**{escape(c)}**" if (i, j) in table.bold and c else escape(c) for j, c in enumerate(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", escape_markdown(table.note)] if table.note else [])]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "–": "--", "—": "---", "…": r"\ldots{}", "→": r"$\rightarrow$", "≈": r"$\approx$",
    "“": "``", "”": "''", "‘": "`", "’": "'", "±": r"$\pm$", "×": r"$\times$", "≥": r"$\geq$",
    "≤": r"$\leq$", "−": "$-$",
    "σ": r"$\sigma$", "λ": r"$\lambda$", "²": r"$^2$", "\n": " ",
}  # fmt: skip
_LATEX_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is, in any font encoding."""
    return _LATEX_SPECIAL.sub(lambda match: _LATEX[match.group()], text)


def to_latex(table: Table) -> str:
    """A `table` with `tabular` inside; needs the package booktabs."""
    rows = []
    for i, row in enumerate(table.text()):
        cells = [escape_latex(cell) for cell in row]
        rows.append(" & ".join(rf"\textbf{{{c}}}" if (i, j) in table.bold else c for j, c in enumerate(cells)) + r" \\")
    note = [rf"\par\smallskip\footnotesize {escape_latex(table.note)}"] if table.note else []
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in table.numeric())}}}",
        r"\toprule",
        " & ".join(map(escape_latex, table.columns)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *note,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
