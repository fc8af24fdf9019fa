"""Matplotlib figures as inline SVG whose colours are the page's: one drawing, right in light and in dark.

Figures are drawn with placeholder colours; the SVG is then rewritten to refer to CSS variables. Text
stays text (searchable, in the page's font), and nothing in the result refers to an outside address.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#010101", "#020202", "#030303"
BLUE, ORANGE, GREEN = "#040404", "#050505", "#060606"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
}
_COLOURS = {
    "--ink": "#1a2230", "--muted": "#5a6576", "--line": "#e1e5eb", "--blue": "#2173c6", "--orange": "#d5690a",
    "--green": "#23875f",
}  # fmt: skip
"""Of a figure that stands alone, without the page that knows whether it is light or dark."""
STYLES = [((BLUE, ORANGE, GREEN)[i % 3], ((), (5, 2), (1.5, 1.5), (6, 1.5, 1.5, 1.5))[i % 4]) for i in range(12)]
"""Colour and dashes of each method's line, all different."""

FONT = 12
HALF, WIDE = (440, 262), (960, 430)
"""Size of all text and of the figures, in CSS pixels: half a page and a page wide, legible on a phone too."""

NEGATIVE, POSITIVE = (46, 134, 222), (230, 119, 11)
"""Blue and orange of the diverging map: apart for every common kind of colour blindness, and on either page."""


class Plot(NamedTuple):
    """An inline SVG, what it is called, and what to look for in it, as plain text."""

    svg: str
    title: str
    caption: str


def figure(width: int, height: int) -> Figure:
    """An empty figure of so many CSS pixels."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width / 72, height / 72), layout="constrained")
    made.get_layout_engine().set(w_pad=3 / 72, h_pad=3 / 72)  # type: ignore[union-attr, call-arg]
    made.patch.set_alpha(0.0)
    return made


def style(axes: Axes, *, xlabel: str = "", ylabel: str = "", grid: str = "both") -> None:
    """The look all plots share: thin grid, no box, small text, plain numbers on log axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, ScalarFormatter

    axes.patch.set_alpha(0.0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=FONT, length=3)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, fontsize=FONT, color=MUTED)
    axes.set_ylabel(ylabel, fontsize=FONT, color=MUTED)
    for axis, scale, (low, high) in (
        (axes.xaxis, axes.get_xscale(), axes.get_xlim()),
        (axes.yaxis, axes.get_yscale(), axes.get_ylim()),
    ):
        if scale == "log":
            decades = np.log10(high / low)
            axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
        elif axis is axes.xaxis:
            axis.set_major_formatter(FuncFormatter(_plain))
        else:
            formatter = ScalarFormatter(useOffset=False)
            formatter.set_scientific(False)
            axis.set_major_formatter(formatter)


def _plain(value: float, _: int | None) -> str:
    """A tick of an abscissa: 12,000 as 12k, no offsets."""
    return f"{value / 1000:,.10g}k" if abs(value) >= 10_000 else f"{value:,.10g}"


def legend(axes: Axes, location: Any = "best") -> None:
    """A legend without a box."""
    axes.legend(loc=location, frameon=False, fontsize=FONT, labelcolor=INK, handlelength=1.6, borderaxespad=0.2)


def diverging(matrix: Float[np.ndarray, "d r"], largest: float) -> Float[np.ndarray, "d r 4"]:
    """Blue below zero, orange above, more opaque the larger; 0 stays blank, and all else is seen.

    Args:
      matrix: `[d, r]`.
      largest: the magnitude that is drawn fully opaque.

    Returns:
      `[d, r, 4]` uint8 RGBA.
    """
    image = np.zeros((*matrix.shape, 4), np.uint8)
    image[..., :3] = np.where((matrix > 0)[..., None], POSITIVE, NEGATIVE)
    strength = np.clip(np.abs(matrix) / max(largest, 1e-30), 0.0, 1.0)
    image[..., 3] = np.where(matrix != 0, 255 * (0.22 + 0.78 * strength), 0)
    return image


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an inline `<svg>` element.

    Args:
      figure: drawn with the placeholder colours of this module.
      name: unique on the page; every id inside gets it as a prefix.
      description: what a screen reader says; escaped here.
    """
    from html import escape

    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    # svg.fonttype is read while the file is written, and only from the settings.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        # `savefig` would draw everything twice, the first time to measure what the layout measures anyway.
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # would apply to the whole page
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    opening = f'<svg {view_box.group()} role="img" aria-label="{escape(description)}">'
    text = opening + text[text.index(">") + 1 :]
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text).strip()


def standalone(svg: str) -> str:
    """An inline SVG of `svg` as a file of its own: a namespace, colours and a font."""
    for variable, colour in _COLOURS.items():
        svg = svg.replace(f"var({variable})", colour)
    opening = '<svg xmlns="http://www.w3.org/2000/svg" style="font-family: system-ui, sans-serif; background: #ffffff"'
    return svg.replace("<svg", opening, 1) + "\n"
