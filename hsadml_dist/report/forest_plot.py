"""Draw forest plots: values with their intervals in named rows, which may form groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from hsadml_dist.report.figure_text import figure_text
from hsadml_dist.report.page import EmbeddedImage
from hsadml_dist.report.plot_style import COLOURS, CONTROL_STYLES, GRID, INK, WIDTH, new_figure, to_svg

CONTROL_STYLE = CONTROL_STYLES[0][:2]
"""Colour and marker of the raw pixels on every page."""
LEARNT_STYLES = tuple(zip((COLOURS[0], *COLOURS[3:]), ("o", "^", "v", "P", "s"), strict=True))
"""Colours and markers of learnt methods, different from those of the controls."""
_GROUP_GAP = 0.85
_STEP = 0.3


@dataclass(frozen=True, kw_only=True)
class ForestPoint:
    """A value with its interval, shares of 1; None draws the value alone.

    Attributes:
        series: Name in the legend, which lists each series once.
        is_control: Draw a small diamond in the colour of the controls.
    """

    series: str
    value: float
    interval: tuple[float, float] | None
    is_control: bool = False


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """Points next to a common name; the title of a group is above its first row, its rows are in succession."""

    name: str
    points: Sequence[ForestPoint]
    group: str = ""


def draw_accuracies(rows: Sequence[ForestRow], *, title: str) -> EmbeddedImage:
    """Draw accuracies with their intervals from top to bottom; ``title`` is the start of the alternative text."""
    figure, axes = plot_rows(rows)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    low = min(end for row in rows for point in row.points for end in (point.value, *(point.interval or ())))
    axes.set_xlim(max(0.0, low - 0.04), 1.005)
    values = "; ".join(
        f"{row.group} {row.name}: ".lstrip() + ", ".join(f"{point.series} {point.value:.1%}" for point in row.points)
        for row in rows
    )
    return to_svg(figure, f"{title}: {values}.")


def draw_differences(rows: Sequence[ForestRow], *, title: str) -> EmbeddedImage:
    """Draw differences in percentage points with their intervals and a line at 0; see :func:`draw_accuracies`."""
    figure, axes = plot_rows(rows)
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f}" if value else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.set_xlabel("difference in percentage points")
    axes.margins(x=0.08)
    values = "; ".join(f"{row.name} {100 * point.value:+.1f}" for row in rows for point in row.points)
    return to_svg(figure, f"{title}, in percentage points: {values}.")


def plot_rows(rows: Sequence[ForestRow]) -> tuple[Figure, Axes]:
    """Return a figure with all rows, the legend and the titles of the groups."""
    styles = series_styles(rows)
    heights, places = row_positions(rows)
    figure, axes = new_figure(WIDTH, 0.36 * heights + (1.0 if len(styles) > 1 else 0.75))
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    for row, place in zip(rows, places, strict=True):
        for order, point in enumerate(row.points):
            offset = _STEP * (order - (len(row.points) - 1) / 2)
            _draw_point(axes, point, place + offset, styles[point.series])
    axes.set_yticks(places, [figure_text(row.name) for row in rows])
    axes.set_ylim(heights - 0.45, -0.75)
    axes.tick_params(axis="y", length=0)
    _write_group_titles(axes, rows, places)
    if len(styles) > 1:
        keys = [
            Line2D([], [], color=colour, marker=marker, linewidth=2, markersize=6, label=figure_text(series))
            for series, (colour, marker) in styles.items()
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=min(4, len(keys)), frameon=False, fontsize=10)
    return figure, axes


def _draw_point(axes: Axes, point: ForestPoint, place: float, style: tuple[str, str]) -> None:
    colour, marker = style
    if point.interval:
        width = 1.4 if point.is_control else 2.2
        axes.plot(point.interval, [place, place], color=colour, linewidth=width, solid_capstyle="butt", zorder=2)
    size = 5.5 if point.is_control else 8
    axes.plot(point.value, place, marker, color=colour, markersize=size, markeredgecolor="white", zorder=3)


def series_styles(rows: Sequence[ForestRow]) -> dict[str, tuple[str, str]]:
    """Return the colour and marker of each series; markers differ too, so that no figure depends on colour."""
    styles: dict[str, tuple[str, str]] = {}
    for point in (point for row in rows for point in row.points):
        learnt = sum(style != CONTROL_STYLE for style in styles.values())
        style = CONTROL_STYLE if point.is_control else LEARNT_STYLES[learnt % len(LEARNT_STYLES)]
        styles.setdefault(point.series, style)
    return styles


def row_positions(rows: Sequence[ForestRow]) -> tuple[float, list[float]]:
    """Return the height of all rows, and the middle of each row from the top."""
    top, places, previous = 0.0, [], None
    for row in rows:
        if row.group and row.group != previous:
            top += _GROUP_GAP
        half = _half_height(row)
        places.append(top + half - 0.5)
        top, previous = top + 2 * half, row.group
    return top, places


def _half_height(row: ForestRow) -> float:
    return max(0.5, _STEP * len(row.points) / 2 + 0.15)


def _write_group_titles(axes: Axes, rows: Sequence[ForestRow], places: Sequence[float]) -> None:
    """Write the title of each group above its first row, at the left edge of the plot."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    text: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "color": INK}
    previous = None
    for row, place in zip(rows, places, strict=True):
        if row.group and row.group != previous:
            above = place - _half_height(row) - 0.2
            axes.text(
                0.0, above, figure_text(row.group), transform=axes.get_yaxis_transform(), va="center", bbox=box, **text
            )
        previous = row.group
