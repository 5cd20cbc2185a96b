"""The figures of a report's main parts: each a self-contained picture with a text that stands in for it.

Colours and frames: see :mod:`hsadml_dist.report.plot_style`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hsadml_dist.report.plot_style import (
    COLOURS,
    CONTROL_STYLES,
    FAINT,
    GRID,
    INK,
    MARKERS,
    WIDTH,
    EmbeddedImage,
    named_y_axis,
    new_figure,
    percent_x_axis,
    style_axes,
    to_svg,
)
from hsadml_dist.report.sphere import SphereProjection

_MOST_POINTS = 1500
_LEGEND_LETTERS = 76
"""Letters of a legend's names, with five for each mark, that stand side by side in a figure."""


@dataclass(frozen=True, kw_only=True)
class MeritPoint:
    """One figure of merit: its name, its value and its interval, all shares of 1."""

    name: str
    value: float
    interval: tuple[float, float] | None
    is_control: bool


def figures_of_merit(bars: Sequence[MeritPoint], level: str = "95%") -> EmbeddedImage:
    """Draw each value as a point with its interval; a control's value is a line through all of them."""
    figure, axes = new_figure(WIDTH, 0.5 * len(bars) + 0.75)
    looks = iter(CONTROL_STYLES)
    for row, bar in enumerate(bars):
        colour, marker, line = next(looks) if bar.is_control else (COLOURS[0], "o", "")
        if bar.interval:
            axes.plot(bar.interval, [row, row], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
        axes.plot(bar.value, row, marker, color=colour, markersize=8, markeredgecolor="white", zorder=3)
        if bar.is_control:
            axes.axvline(bar.value, color=colour, linewidth=1.2, linestyle=line, zorder=1)
    named_y_axis(axes, [bar.name for bar in bars])
    percent_x_axis(axes)
    words = "; ".join(f"{bar.name} {bar.value:.1%}" for bar in bars)
    return to_svg(figure, f"Points with {level} intervals on a scale from 0 to 100 %: {words}.")


def learning_curves(metrics: Sequence[Mapping[str, Any]]) -> EmbeddedImage:
    """Draw the loss of each step with its running mean, and the learning rate below."""
    step, loss, rate = (np.array([float(row[name]) for row in metrics]) for name in ("step", "loss", "lr"))
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for axes in (upper, lower):
        style_axes(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
    some = np.unique(np.linspace(0, len(step) - 1, _MOST_POINTS).round().astype(int))
    window = max(10, len(step) // 20) if len(step) >= 30 else 1
    if window > 1:
        upper.plot(step[some], loss[some], color=FAINT, linewidth=0.8, label="each step")
        label = f"mean of the last {window} steps"
        upper.plot(step[some], _running_mean(loss, window)[some], color=COLOURS[0], linewidth=2, label=label)
        upper.legend(frameon=False, fontsize=9)
    else:
        upper.plot(step[some], loss[some], color=COLOURS[0], linewidth=2)
    upper.set_ylabel("loss")
    lower.plot(step[some], rate[some], color=COLOURS[1], linewidth=2)
    lower.set_ylabel("learning rate")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    alt = f"Two curves over {len(step)} steps: the loss goes from {loss[0]:.4g} to {loss[-1]:.4g}, the learning rate "
    return to_svg(figure, alt + f"from {rate[0]:.3g} over at most {rate.max():.3g} to {rate[-1]:.3g}.")


def confusion_matrix(count_CC: Sequence[Sequence[int]], names: Sequence[str]) -> EmbeddedImage:
    """Draw the share of each true class (row) that is taken for each class (column), with the counts written in."""
    counts = np.array(count_CC, dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.5 + 0.8 * len(names)
    figure, axes = new_figure(side + 1.0, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(share.shape):
        text = f"{share[row, column]:.0%}\n{int(counts[row, column])}"
        colour = "white" if share[row, column] > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("class of the nearest reference")
    axes.set_ylabel("true class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    words = "; ".join(f"{name} {share[row, row]:.0%}" for row, name in enumerate(names))
    return to_svg(figure, f"Confusion matrix; share of each true class that is recognised: {words}.")


def sphere_map(sphere: SphereProjection, names: Sequence[str], shown: Sequence[int]) -> EmbeddedImage:
    """Draw the slices and the centres of the classes ``shown`` on a Mollweide map, all other slices as grey dots."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.add_subplot(projection="mollweide")
    axes.set_axisbelow(True)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    looks = [(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]) for place in range(len(shown))]
    keys = []
    others = _some(sphere.point_N2[~np.isin(sphere.label_N, shown)], _MOST_POINTS)
    axes.scatter(others[:, 0], others[:, 1], s=5, linewidths=0, color=FAINT, marker="o")
    for label, (colour, marker) in zip(shown, looks, strict=True):
        mine = _some(sphere.point_N2[sphere.label_N == label], _MOST_POINTS // len(shown))
        axes.scatter(mine[:, 0], mine[:, 1], s=13, alpha=0.55, linewidths=0, color=colour, marker=marker)
        keys.append(Line2D([], [], linestyle="", markersize=7, color=colour, marker=marker, label=names[label]))
    for label, (colour, marker) in zip(shown, looks, strict=True):
        longitude, latitude = sphere.centre_C2[label]
        axes.scatter(
            longitude, latitude, s=170, edgecolors=INK, linewidths=1.8, zorder=5, facecolors=colour, marker=marker
        )
    longest = max(len(names[label]) for label in shown)
    columns = max(1, min(4, len(shown), _LEGEND_LETTERS // (longest + 5)))
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    words = "; ".join(f"{names[label]} {sphere.own_angle_C[label]:.0f} degrees" for label in shown)
    return to_svg(figure, f"Map of the sphere of embeddings; mean angle of each class to its own centre: {words}.")


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and those before it, at most ``window`` of them."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (total[last] - total[first]) / (last - first)


def _some(point_N2: np.ndarray, most: int) -> np.ndarray:
    """Return at most ``most`` points, spread evenly over the given order."""
    if len(point_N2) <= most:
        return point_N2
    return point_N2[np.linspace(0, len(point_N2) - 1, most).round().astype(int)]
