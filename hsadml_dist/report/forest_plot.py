"""Figures of the page on several runs: values with intervals, row under row, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from hsadml_dist.report.plot_style import COLOURS, CONTROL_STYLES, GRID, INK, WIDTH, EmbeddedImage, style_axes, to_svg

CONTROL_STYLE = CONTROL_STYLES[0][:2]
"""The raw pixels' colour and marker on every page."""
LOOKS = tuple(zip((COLOURS[0], *COLOURS[3:]), ("o", "^", "v", "P", "s"), strict=True))
"""Colours and markers of what is learnt: none that a control has."""
_GROUP_GAP = 0.85
_STEP = 0.3


@dataclass(frozen=True, kw_only=True)
class ForestPoint:
    """A value with its interval, shares of 1.

    Attributes:
        series: What it is of; the figure's key names each series once.
        value: The value.
        interval: Its interval; None draws the value alone.
        is_control: Drawn as a control: a small diamond.
    """

    series: str
    value: float
    interval: tuple[float, float] | None
    is_control: bool = False


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """Marks that share a name at the left; the first row of a group has its title."""

    name: str
    marks: Sequence[ForestPoint]
    group: str = ""


def forest(rows: Sequence[ForestRow], *, what: str) -> EmbeddedImage:
    """Draw accuracies with their intervals.

    Args:
        rows: From top to bottom; rows of one group stand together.
        what: What the picture shows, for those who do not see it.
    """
    figure, axes = _frame(rows)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    low = min(end for row in rows for mark in row.marks for end in (mark.value, *(mark.interval or ())))
    axes.set_xlim(max(0.0, low - 0.04), 1.005)
    words = "; ".join(
        f"{row.group} {row.name}: ".lstrip() + ", ".join(f"{mark.series} {mark.value:.1%}" for mark in row.marks)
        for row in rows
    )
    return to_svg(figure, f"{what}: {words}.")


def differences(rows: Sequence[ForestRow], *, what: str) -> EmbeddedImage:
    """Draw differences in percentage points with their intervals, and the line of no difference."""
    figure, axes = _frame(rows)
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f}" if value else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.set_xlabel("difference in percentage points")
    axes.margins(x=0.08)
    words = "; ".join(f"{row.name} {100 * mark.value:+.1f}" for row in rows for mark in row.marks)
    return to_svg(figure, f"{what}, in percentage points: {words}.")


def _frame(rows: Sequence[ForestRow]) -> tuple[Figure, Axes]:
    """Return a figure with all rows drawn, its key and the groups' titles."""
    looks = _looks(rows)
    heights, places = _heights(rows)
    figure = Figure(figsize=(WIDTH, 0.36 * heights + (1.0 if len(looks) > 1 else 0.75)), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    for row, place in zip(rows, places, strict=True):
        for order, mark in enumerate(row.marks):
            _draw(axes, mark, place + _offset(order, len(row.marks)), looks[mark.series])
    axes.set_yticks(places, [row.name for row in rows])
    axes.set_ylim(heights - 0.45, -0.75)
    axes.tick_params(axis="y", length=0)
    _titles(axes, rows, places)
    if len(looks) > 1:
        keys = [
            Line2D([], [], color=colour, marker=marker, linewidth=2, markersize=6, label=series)
            for series, (colour, marker) in looks.items()
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=min(4, len(keys)), frameon=False, fontsize=10)
    return figure, axes


def _draw(axes: Axes, mark: ForestPoint, place: float, look: tuple[str, str]) -> None:
    colour, marker = look
    if mark.interval:
        width = 1.4 if mark.is_control else 2.2
        axes.plot(mark.interval, [place, place], color=colour, linewidth=width, solid_capstyle="butt", zorder=2)
    size = 5.5 if mark.is_control else 8
    axes.plot(mark.value, place, marker, color=colour, markersize=size, markeredgecolor="white", zorder=3)


def _looks(rows: Sequence[ForestRow]) -> dict[str, tuple[str, str]]:
    """Return each series' colour and marker: shapes differ too, so that no figure needs its colours."""
    looks: dict[str, tuple[str, str]] = {}
    for mark in (mark for row in rows for mark in row.marks):
        learnt = sum(look != CONTROL_STYLE for look in looks.values())
        looks.setdefault(mark.series, CONTROL_STYLE if mark.is_control else LOOKS[learnt % len(LOOKS)])
    return looks


def _heights(rows: Sequence[ForestRow]) -> tuple[float, list[float]]:
    """Return the height of all rows, and each row's middle, from the top."""
    top, places, before = 0.0, [], None
    for row in rows:
        if row.group and row.group != before:
            top += _GROUP_GAP
        half = max(0.5, _STEP * len(row.marks) / 2 + 0.15)
        places.append(top + half - 0.5)
        top, before = top + 2 * half, row.group
    return top, places


def _offset(order: int, count: int) -> float:
    return _STEP * (order - (count - 1) / 2)


def _titles(axes: Axes, rows: Sequence[ForestRow], places: Sequence[float]) -> None:
    """Write each group's title above its first row, at the left edge of the plot."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    text: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "color": INK}
    before = None
    for row, place in zip(rows, places, strict=True):
        if row.group and row.group != before:
            above = place - max(0.5, _STEP * len(row.marks) / 2 + 0.15) - 0.2
            axes.text(0.0, above, row.group, transform=axes.get_yaxis_transform(), va="center", bbox=box, **text)
        before = row.group
