"""Colours, axes and SVG output shared by the report's figures.

Colours: Okabe and Ito, "Color Universal Design", 2008, distinguishable for colour-blind readers. Each class also has a
marker shape of its own, so that no figure depends on colour.
"""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from hsadml_dist.report.figure_text import figure_text
from hsadml_dist.report.page import EmbeddedImage

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "p", "h")
INK, FAINT, GRID = "#222222", "#b5b5b5", "#e6e6e6"
WIDTH = 6.8
"""Width in inches of a figure that spans the page."""
CONTROL_STYLES = ((COLOURS[1], "D", (0, (4, 3))), (COLOURS[2], "s", (0, (1, 2))))
"""Colour, marker and line style of each control: raw pixels, low-level features."""


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of styled axes; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Apply the report's style to axes."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=10, length=3)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_axisbelow(True)


def percent_x_axis(axes: Axes) -> None:
    """Scale the x axis from 0 to 100 %."""
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", color=GRID, linewidth=0.8)


def named_y_axis(axes: Axes, names: list[str]) -> None:
    """Label the rows of the y axis, the first on top."""
    axes.set_yticks(range(len(names)), [figure_text(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def to_svg(figure: Figure, alt: str) -> EmbeddedImage:
    """Return a figure as an embedded SVG; the same figure gives the same bytes."""
    file = io.BytesIO()
    # A fixed salt and no date make the output reproducible.
    with mpl.rc_context({"svg.hashsalt": "hsadml", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return EmbeddedImage(uri="data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode(), alt=alt)
