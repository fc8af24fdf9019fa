"""Small pieces of HTML. Whatever comes from data passes through `text` before it reaches the page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from spectran_jax.report.stylesheet import CSS

if TYPE_CHECKING:
    from spectran_jax.report.figures import Plot

_CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


def text(value: object) -> str:
    """Any value as text that stands in an element or an attribute; control characters are left out."""
    clean = str(value).translate(_CONTROL).encode("utf-8", "replace").decode("utf-8")
    return html.escape(clean, quote=True)


def document(title: str, main: str, *, lead: str = "", navigation: str = "", footer: str = "") -> str:
    """A whole page that needs no other file; `title` is plain text, all else HTML. `lead` stands below the title."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title>",
        f"<style>{CSS}</style></head><body>",
        f'<div class="wrap"><header><h1 dir="auto">{text(title)}</h1>',
        f"{lead}</header></div>",
        navigation,
        f'<main class="wrap">{main}</main>',
        footer,
        "</body></html>\n",
    ]
    return "\n".join(filter(None, parts))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    numeric: Iterable[int] = (),
    foot: Sequence[str] = (),
    classes: str = "",
    groups: Iterable[int] = (),
) -> str:
    """A table that scrolls sideways where it does not fit.

    Args:
      head: titles of the columns, HTML.
      rows: cells, HTML; the first of each row is its header.
      caption: HTML.
      numeric: indices of the columns that are set flush right.
      foot: cells of a last row, such as totals.
      classes: of the table.
      groups: indices of the rows before which a heavier line stands.
    """
    flush, heavy = set(numeric), set(groups)

    def row(cells: Sequence[str], header: str, scope: str, attributes: str = "") -> str:
        parts = []
        for i, cell in enumerate(cells):
            tag = "th" if header == "all" or (header == "first" and i == 0) else "td"
            scoped = f' scope="{scope}"' if tag == "th" else ""
            flushed = ' class="num"' if i in flush else ""
            parts.append(f"<{tag}{scoped}{flushed}>{cell}</{tag}>")
        return f"<tr{attributes}>{''.join(parts)}</tr>"

    body = [row(cells, "first", "row", ' class="group"' if i in heavy else "") for i, cells in enumerate(rows)]
    return "".join(
        [
            '<div class="table" tabindex="0">',
            f'<table class="{classes}">' if classes else "<table>",
            f"<caption>{caption}</caption>" if caption else "",
            f"<thead>{row(head, 'all', 'col')}</thead>",
            f"<tbody>{''.join(body)}</tbody>",
            f"<tfoot>{row(foot, 'first', 'row')}</tfoot>" if foot else "",
            "</table></div>",
        ]
    )


def cards(entries: Iterable[tuple[str, str, str]], *, small: bool = False) -> str:
    """Figures with their names and an optional note, as (name, value, note), plain text."""
    inside = "".join(
        f'<div class="card"><dt>{text(name)}</dt><dd>{text(value)}</dd>'
        + (f'<dd class="note">{text(note)}</dd>' if note else "")
        + "</div>"
        for name, value, note in entries
    )
    return f'<dl class="cards{" small" if small else ""}">{inside}</dl>' if inside else ""


def plot(shown: Plot, *, wide: bool = False) -> str:
    """A plot with its title and caption."""
    return (
        f'<figure class="panel{" wide" if wide else ""}"><h3>{text(shown.title)}</h3>'
        f'<div class="plot">{shown.svg}</div><figcaption>{text(shown.caption)}</figcaption></figure>'
    )


def section(name: str, title: str, intro: str, *content: str) -> str:
    """A section of the page, or nothing where it has no content; `intro` is plain text, `content` HTML."""
    inside = "".join(content)
    if not inside:
        return ""
    lead = f'<p class="intro">{text(intro)}</p>' if intro else ""
    heading = f'<h2 id="{name}-title">{text(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{lead}{inside}</section>'


def grid(kind: str, *content: str) -> str:
    """Panels side by side where there is room, `kind` two or three."""
    inside = "".join(content)
    return f'<div class="grid {kind}">{inside}</div>' if inside else ""


def panel(content: str) -> str:
    """A framed part of the page."""
    return f'<div class="panel">{content}</div>'


def details(summary: str, content: str, *, opened: bool = False) -> str:
    """A part that opens on demand, without a script; both HTML."""
    return (
        f'<details{" open" if opened else ""}><summary>{summary}</summary><div class="inside">{content}</div></details>'
    )
