"""Draw the figures of a run's report: metrics, classifiers, confusion, calibration and learning curves.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hsadml_dist.report.figure_text import class_labels, figure_text
from hsadml_dist.report.formatting import CONTROLS, method_title
from hsadml_dist.report.page import EmbeddedImage
from hsadml_dist.report.plot_style import (
    COLOURS,
    CONTROL_STYLES,
    FAINT,
    GRID,
    INK,
    WIDTH,
    named_y_axis,
    new_figure,
    percent_x_axis,
    style_axes,
    to_svg,
)
from hsadml_dist.report.run_facts import Metric

_MAX_POINTS = 1500
# A hatch of dots would take 300 kB; lines are small.
_OUTCOME_STYLES = ((COLOURS[0], ""), ("#ffffff", "|||"), (COLOURS[1], "////"))


def draw_metrics(metrics: Sequence[Metric], level: str) -> EmbeddedImage:
    """Draw each metric as a point with its interval, and the controls also as vertical lines."""
    figure, axes = new_figure(WIDTH, 0.5 * len(metrics) + 0.75)
    control_styles = iter(CONTROL_STYLES)
    for row, metric in enumerate(metrics):
        colour, marker, line = next(control_styles) if metric.is_control else (COLOURS[0], "o", "")
        if metric.interval:
            axes.plot(metric.interval, [row, row], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
        axes.plot(metric.value, row, marker, color=colour, markersize=8, markeredgecolor="white", zorder=3)
        if metric.is_control:
            axes.axvline(metric.value, color=colour, linewidth=1.2, linestyle=line, zorder=1)
    named_y_axis(axes, [metric.name for metric in metrics])
    percent_x_axis(axes)
    values = "; ".join(f"{metric.name} {metric.value:.1%}" for metric in metrics)
    return to_svg(figure, f"Points with {level} intervals on a scale from 0 to 100 %: {values}.")


def draw_classifiers(methods: Mapping[str, Mapping[str, Any]], level: str) -> EmbeddedImage:
    """Draw the accuracy of each classifier with its interval, its balanced accuracy, and the controls as lines."""
    learnt = [name for name in methods if name not in CONTROLS]
    figure, axes = new_figure(WIDTH, 0.38 * max(len(learnt), 1) + 1.25)
    for row, name in enumerate(learnt):
        _draw_classifier(axes, row, methods[name])
    keys = [
        Line2D([], [], color=COLOURS[0], marker="o", markersize=8, linewidth=2, label=f"accuracy, {level} interval"),
        Line2D([], [], color=INK, marker="^", linestyle="", markersize=5, label="balanced accuracy"),
    ]
    for (control, name), (colour, _, line) in zip(CONTROLS.items(), CONTROL_STYLES, strict=True):
        if control in methods:
            value = methods[control]["accuracy"]
            axes.axvline(value, color=colour, linewidth=1.6, linestyle=line, zorder=1)
            label = f"{name} (control) {value:.1%}"
            keys.append(Line2D([], [], color=colour, linewidth=1.6, linestyle=line, label=label))
    named_y_axis(axes, [method_title(name) for name in learnt])
    percent_x_axis(axes)
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    values = "; ".join(f"{method_title(name)} {one['accuracy']:.1%}" for name, one in methods.items())
    return to_svg(figure, f"Points on a scale from 0 to 100 %, the controls as vertical lines: {values}.")


def _draw_classifier(axes: Axes, row: int, figures: Mapping[str, Any]) -> None:
    if figures["interval"]:
        axes.plot(figures["interval"], [row, row], color=COLOURS[0], linewidth=2, solid_capstyle="butt", zorder=2)
    axes.plot(figures["accuracy"], row, "o", color=COLOURS[0], markersize=8, markeredgecolor="white", zorder=4)
    axes.plot(figures["balanced_accuracy"], row + 0.27, "^", color=INK, markersize=4.5, zorder=3)


def draw_confusion_matrix(count_CC: Sequence[Sequence[int]], names: Sequence[str]) -> EmbeddedImage:
    """Draw the share of each true class (row) that is assigned to each class (column), with the counts."""
    counts = np.array(count_CC, dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.5 + 0.8 * len(names)
    figure, axes = new_figure(side + 1.0, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(share.shape):
        text = f"{share[row, column]:.0%}\n{int(counts[row, column])}"
        colour = "white" if share[row, column] > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
    labels = class_labels(names)
    axes.set_xticks(range(len(names)), labels, rotation=30 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), labels)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    values = "; ".join(f"{name} {share[row, row]:.0%}" for row, name in enumerate(names))
    return to_svg(figure, f"Confusion matrix; share of each true class that is classified correctly: {values}.")


def draw_outcomes(counts: Mapping[str, int], unit: str, by: str) -> EmbeddedImage:
    """Draw at most three counts as parts of one bar, from good to bad; ``by`` names their criterion in the text."""
    figure, axes = new_figure(WIDTH, 1.35)
    start = 0
    for (name, count), (colour, hatch) in zip(counts.items(), _OUTCOME_STYLES, strict=False):
        style: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": INK, "linewidth": 0.8}
        axes.barh(0, count, left=start, height=0.5, label=figure_text(f"{name} {count:,}"), **style)
        start += count
    axes.set(yticks=[], xlim=(0, max(start, 1)), xlabel=unit)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    parts = ", ".join(f"{count} {name}" for name, count in counts.items())
    return to_svg(figure, f"A bar of {start} {unit} by {by}: {parts}.")


def draw_reliability(calibration: Mapping[str, Any]) -> EmbeddedImage:
    """Draw the reliability diagram, with the number of slices in each bin below."""
    bins = calibration["reliability"]
    predicted, correct = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
    figure, upper, lower = _two_axes(4.6, 4.9, [4, 1], "both")
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1.4, linestyle=(0, (4, 3)))
    upper.vlines(predicted, predicted, correct, color=COLOURS[1], linewidth=1.6)
    upper.plot(predicted, correct, "o-", color=COLOURS[0], linewidth=1.4, markersize=7, markeredgecolor="white")
    upper.set(ylabel="correct", ylim=(-0.03, 1.03))
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    middle = [(one["low"] + one["high"]) / 2 for one in bins]
    lower.bar(middle, [one["count"] for one in bins], width=0.86 / calibration["bins"], color=COLOURS[0])
    lower.set(xlim=(0, 1), xlabel="predicted probability", ylabel="slices")
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    lower.xaxis.set_major_formatter(PercentFormatter(1))
    figure.align_ylabels()
    values = "; ".join(f"predicted {one['confidence']:.0%}, correct {one['accuracy']:.0%}" for one in bins)
    error = calibration["expected_calibration_error"]
    return to_svg(figure, f"Reliability diagram, expected calibration error {error:.3f}, by bin: {values}.")


def draw_learning_curves(metrics: Sequence[Mapping[str, Any]]) -> EmbeddedImage:
    """Draw the loss per step with its running mean, and the learning rate below."""
    step, loss, rate = (np.array([float(row[name]) for row in metrics]) for name in ("step", "loss", "lr"))
    figure, upper, lower = _two_axes(WIDTH, 4.2, [3, 1], "y")
    drawn = np.unique(np.linspace(0, len(step) - 1, _MAX_POINTS).round().astype(int))
    window = max(10, len(step) // 20) if len(step) >= 30 else 1
    if window > 1:
        upper.plot(step[drawn], loss[drawn], color=FAINT, linewidth=0.8, label="each step")
        label = f"mean of the last {window} steps"
        upper.plot(step[drawn], _running_mean(loss, window)[drawn], color=COLOURS[0], linewidth=2, label=label)
        upper.legend(frameon=False, fontsize=9)
    else:
        upper.plot(step[drawn], loss[drawn], color=COLOURS[0], linewidth=2)
    upper.set_ylabel("loss")
    lower.plot(step[drawn], rate[drawn], color=COLOURS[1], linewidth=2)
    lower.set(xlabel="step", ylabel="learning rate")
    lower.set_ylim(bottom=0)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    alt = f"Two curves over {len(step)} steps: the loss goes from {loss[0]:.4g} to {loss[-1]:.4g}, the learning rate "
    return to_svg(figure, alt + f"from {rate[0]:.3g} over at most {rate.max():.3g} to {rate[-1]:.3g}.")


def _two_axes(width: float, height: float, ratios: Sequence[int], grid: Any) -> tuple[Figure, Axes, Axes]:
    """Return a figure with two styled axes, one above the other, that share the x axis."""
    figure = Figure(figsize=(width, height), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    for axes in (upper, lower):
        style_axes(axes)
        axes.grid(axis=grid, color=GRID, linewidth=0.8)
    return figure, upper, lower


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and those before it, at most ``window`` of them."""
    total, last = np.cumsum(np.concatenate([[0.0], values])), np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (total[last] - total[first]) / (last - first)
