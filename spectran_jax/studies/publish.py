"""What an experiment found, and everything it is written to: terminal, tables/, figures/, index.html, result.json."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectran_jax.report import html
from spectran_jax.report.figures import HALF, Plot, standalone
from spectran_jax.studies import tables
from spectran_jax.studies.tables import Table
from spectran_jax.writing import write_json, write_text


@dataclasses.dataclass(frozen=True)
class Result:
    """What an experiment found."""

    title: str
    tables: Sequence[Table] = ()
    figures: Sequence[Plot] = ()
    """Made with `report.figures`: inline SVG that takes its colours from the page."""
    text: str = ""
    """What the experiment asked and did, in plain paragraphs with empty lines between them."""
    command: str = ""
    """The command that gives it again."""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More for result.json: what other programs may want, JSON values without NaN."""


def publish(result: Result, workdir: Path) -> None:
    """Prints the tables, but for appendices, and writes them and the rest into `workdir`.

    `tables/NAME.csv`, `.md` and `.tex`, `figures/NAME.svg`, `index.html` (one page, no network needed) and
    `result.json`; NAME is the title in small letters. Each is written whole or not at all. Tables and figures of an
    earlier result.json that this one no longer has are removed.

    Raises:
      RunError: where the disk refuses.
    """
    from spectran_jax.report.terminal import print_table

    for table in (table for table in result.tables if not table.appendix):
        print_table(tables.to_terminal(table))
    earlier = _read_json(workdir / "result.json")
    for folder in ("tables", "figures"):
        (workdir / folder).mkdir(parents=True, exist_ok=True)
    names = unique_names([table.title for table in result.tables])
    for name, table in zip(names, result.tables, strict=True):
        write_text(workdir / "tables" / f"{name}.csv", tables.to_csv(table))
        write_text(workdir / "tables" / f"{name}.md", tables.to_markdown(table))
        write_text(workdir / "tables" / f"{name}.tex", tables.to_latex(table))
    for name, figure in zip(unique_names([f.title for f in result.figures]), result.figures, strict=True):
        write_text(workdir / "figures" / f"{name}.svg", standalone(figure.svg))
    write_text(workdir / "index.html", page(result))
    made = to_json(result)
    write_json(workdir / "result.json", made)
    for name in _files(earlier) - _files(made):
        (workdir / name).unlink(missing_ok=True)
    print(f"result: {workdir / 'result.json'}\npage:   {workdir / 'index.html'}")


def to_json(result: Result) -> dict[str, Any]:
    """What result.json holds: title, command, text, the tables' values, the figures' titles and `data`."""
    rows = [
        {
            "title": table.title,
            "columns": list(table.columns),
            "rows": [[c._asdict() if isinstance(c, tables.Spread) else c for c in row] for row in table.rows],
            "note": table.note,
        }
        for table in result.tables
    ]
    figures = [figure.title for figure in result.figures]
    named = {"title": result.title, "command": result.command, "text": result.text, "tables": rows, "figures": figures}
    return {**named, **result.data}


def _read_json(path: Path) -> Any:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _files(held: Any) -> set[str]:
    """The tables and figures of a result.json; none where it is not one."""
    try:
        titles = unique_names([table["title"] for table in held["tables"]])
        figures = unique_names(held.get("figures", []))
    except (AttributeError, KeyError, TypeError):
        return set()
    kinds = ("csv", "md", "tex")
    return {f"tables/{name}.{kind}" for name in titles for kind in kinds} | {f"figures/{name}.svg" for name in figures}


def page(result: Result) -> str:
    """index.html: text, tables and figures in the look of a run's report."""
    paragraphs = "".join(f"<p>{html.text(p)}</p>" for p in re.split(r"\n\s*\n", result.text.strip()) if p)
    command = f"<pre>{html.text(result.command)}</pre>" if result.command else ""
    shown = [html.panel(_html_table(table)) for table in result.tables if not table.appendix]
    folded = [html.details(html.text(table.title), _html_table(table)) for table in result.tables if table.appendix]
    wide = [figure for figure in result.figures if width(figure.svg) > HALF[0]]
    half = [figure for figure in result.figures if width(figure.svg) <= HALF[0]]
    drawn = [*(html.plot(figure, wide=True) for figure in wide), html.grid("two", *map(html.plot, half))]
    body = "".join(
        [
            html.section("about", "What was done", "", paragraphs, command),
            html.section("results", "Results", "", '<div class="stack">', *shown, "</div>") if shown else "",
            html.section("figures", "Figures", "", '<div class="stack">', *drawn, "</div>") if result.figures else "",
            html.section("appendix", "Appendix", "", *folded),
        ]
    )
    return html.document(result.title, body)


def width(svg: str) -> float:
    """Of an inline SVG, in CSS pixels, by its view box; 0 where it has none."""
    found = re.search(r'viewBox="\S+ \S+ (\S+)', svg)
    return float(found.group(1)) if found else 0.0


def unique_names(titles: Sequence[str]) -> list[str]:
    """File names from titles: small letters, digits and hyphens, a number where two are alike."""
    found: list[str] = []
    for title in titles:
        plain = re.sub(r"[^a-z0-9@]+", "-", title.lower()).strip("-")[:60].rstrip("-") or "untitled"
        name, number = plain, 2
        while name in found:
            name, number = f"{plain}-{number}", number + 1
        found.append(name)
    return found


def _html_table(table: Table) -> str:
    rows = [
        [f"<strong>{html.text(c)}</strong>" if (i, j) in table.bold else html.text(c) for j, c in enumerate(row)]
        for i, row in enumerate(table.text())
    ]
    numeric = [j for j, right in enumerate(table.numeric()) if right]
    note = f'<p class="small muted">{html.text(table.note)}</p>' if table.note else ""
    return (
        html.table([html.text(c) for c in table.columns], rows, caption=html.text(table.title), numeric=numeric) + note
    )
