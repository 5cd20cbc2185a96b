"""Colours, axes style and SVG output shared by all figures of the report.

Colours: Okabe and Ito, "Color Universal Design", 2008, distinguishable for colour-blind readers. Each class also has
its own marker shape, so that no figure depends on colour alone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "p", "h")
INK, FAINT, GRID = "#222222", "#b5b5b5", "#e6e6e6"
WIDTH = 6.8
"""Inches of a figure as wide as the page's text."""

CONTROL_STYLES = ((COLOURS[1], "D", (0, (4, 3))), (COLOURS[2], "s", (0, (1, 2))))
"""Colour, marker and line of each control, in their order: raw pixels, low-level features."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """A picture inside the page.

    Attributes:
        uri: A data URI.
        alt: What the picture shows, in words.
    """

    uri: str
    alt: str


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of a size in inches and its one pair of axes, in the page's style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Give axes the page's style."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=10, length=3)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_axisbelow(True)


def percent_x_axis(axes: Axes) -> None:
    """Make the horizontal axis one of shares, from 0 to 100 %."""
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", color=GRID, linewidth=0.8)


def named_y_axis(axes: Axes, names: list[str]) -> None:
    """Make the vertical axis one of named rows, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def to_svg(figure: Figure, alt: str) -> EmbeddedImage:
    """Return a figure as a picture; the same figure gives the same bytes."""
    file = io.BytesIO()
    # The salt and the missing date make the same numbers give the same file.
    with mpl.rc_context({"svg.hashsalt": "hsadml", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return EmbeddedImage(uri="data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode(), alt=alt)


# A hatch of dots would be 300 kB of curves; lines are drawn as such.
_LOOKS = ((COLOURS[0], ""), ("#ffffff", "|||"), (COLOURS[1], "////"))


def outcome_bar(counts: Mapping[str, int], unit: str, alt: str) -> EmbeddedImage:
    """Draw at most three numbers as parts of one bar, from good to bad.

    Args:
        counts: Name of a part to its size.
        unit: What is counted, in the plural.
        alt: What the bar is of, in words; the parts are added.
    """
    figure, axes = new_figure(WIDTH, 1.35)
    start = 0
    for (name, count), (colour, hatch) in zip(counts.items(), _LOOKS, strict=False):
        label = f"{name} {count:,}"
        axes.barh(
            0, count, left=start, height=0.5, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.8, label=label
        )
        start += count
    axes.set_yticks([])
    axes.set_xlim(0, max(start, 1))
    axes.set_xlabel(unit)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    return to_svg(figure, f"A bar of {start} {unit} by {alt}: {words}.")
