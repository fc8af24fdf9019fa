"""The page of a report: one HTML file that needs no network, no server and no script."""

from __future__ import annotations

import re
from pathlib import Path

from spectran_jax.report import appendix, sections
from spectran_jax.report.data import ReportData
from spectran_jax.report.html import text
from spectran_jax.report.stylesheet import CSS
from spectran_jax.writing import write_text

SECTIONS = (
    sections.results,
    sections.training,
    sections.adapter,
    sections.spectrum,
    sections.examples,
    appendix.cost,
    appendix.configuration,
)
"""In the order of the page."""


def render(data: ReportData) -> str:
    """The whole page as one string of HTML. Parts whose data is missing are left out, and so are their links."""
    body = [section(data) for section in SECTIONS]
    names = re.findall(r'<section id="([a-z]+)"', "".join(body))
    links = "".join(f'<li><a href="#{name}">{name.capitalize()}</a></li>' for name in names)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(data.title)}</title>",
            f"<style>{CSS}</style></head><body>",
            f'<div class="wrap"><header><h1 dir="auto">{text(data.title)}</h1>',
            f'<p class="lead">{sections.lead(data)}</p>',
            f"{sections.headline(data)}</header></div>",
            f'<nav aria-label="Sections"><ul class="wrap">{links}</ul></nav>',
            f'<main class="wrap">{"".join(body)}</main>',
            f'<footer class="wrap">{appendix.footer(data)}</footer>',
            "</body></html>\n",
        ]
    )


def write_report(data: ReportData, path: Path) -> None:
    """Writes the page to `path`, whole or not at all: a reader never sees half a page.

    Raises:
      RunError: where the file can't be written (disk full, no permission); an older page stays.
    """
    write_text(path, render(data))
