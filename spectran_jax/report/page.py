"""The page of a report: one HTML file that needs no network, no server and no script."""

from __future__ import annotations

import re
from pathlib import Path

from spectran_jax.report import appendix, html, sections
from spectran_jax.report.data import ReportData
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
    return html.document(
        data.title,
        "".join(body),
        lead=f'<p class="lead">{sections.lead(data)}</p>\n{sections.headline(data)}',
        navigation=f'<nav aria-label="Sections"><ul class="wrap">{links}</ul></nav>',
        footer=f'<footer class="wrap">{appendix.footer(data)}</footer>',
    )


def write_report(data: ReportData, path: Path) -> None:
    """Writes the page to `path`, whole or not at all: a reader never sees half a page.

    Raises:
      RunError: where the file can't be written (disk full, no permission); an older page stays.
    """
    write_text(path, render(data))
