"""The section on probabilities: a reliability diagram and its bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hsadml_dist.report.drawing import COLOURS, FAINT, GRID, EmbeddedImage, style_axes, to_svg
from hsadml_dist.report.page import Table
from hsadml_dist.report.section import ReportSection


def calibration_section(result: Mapping[str, Any]) -> ReportSection:
    """Return the section on ``result["calibration"]``."""
    found = result["calibration"]
    bins = found["reliability"]
    text = (
        "The probability of a class is the softmax over the scaled cosines to the class centres. Slices are grouped by"
        " the probability of the class they are given; on the dashed line it equals the share that is right, below it"
        " the network is too sure of itself. The centres give these probabilities, not the nearest neighbours."
    )
    tables = [_bins_table(bins, found["bins"]), _scores_table(found)]
    return ReportSection(
        title="Are the probabilities honest?", text=text, picture=_draw_reliability(found), tables=tables
    )


def _bins_table(bins: Sequence[Mapping[str, Any]], number: int) -> Table:
    rows = [
        [
            f"{one['low']:.0%} to {one['high']:.0%}",
            f"{one['count']:,}",
            f"{one['confidence']:.1%}",
            f"{one['accuracy']:.1%}",
            f"{100 * (one['accuracy'] - one['confidence']):+.1f} points",
        ]
        for one in bins
    ]
    caption = f"Slices by the probability of the class they are given ({number} equal bins, empty ones left out)"
    head = ("stated probability", "slices", "mean of it", "right", "right less stated")
    return Table(caption=caption, head=head, rows=rows)


def _scores_table(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            "expected calibration error",
            f"{found['expected_calibration_error']:.3f}",
            "mean gap between stated and right over the slices; above 0 by chance alone where slices are few",
        ],
        ["Brier score", f"{found['brier_score']:.3f}", "mean squared distance to the truth, from 0 (best) to 2"],
        [
            "negative log-likelihood",
            f"{found['negative_log_likelihood']:.3f}",
            "mean surprise at the true class, in nats",
        ],
    ]
    return Table(caption="Summary; less is better", head=("score", "value", "what it is"), rows=rows)


def _draw_reliability(found: Mapping[str, Any]) -> EmbeddedImage:
    bins = found["reliability"]
    stated, right = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
    figure = Figure(figsize=(4.6, 4.9), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for axes in (upper, lower):
        style_axes(axes)
        axes.grid(color=GRID, linewidth=0.8)
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1.4, linestyle=(0, (4, 3)))
    upper.vlines(stated, stated, right, color=COLOURS[1], linewidth=1.6)
    upper.plot(stated, right, "o-", color=COLOURS[0], linewidth=1.4, markersize=7, markeredgecolor="white")
    upper.set_ylabel("right")
    upper.set_ylim(-0.03, 1.03)
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    middle = [(one["low"] + one["high"]) / 2 for one in bins]
    lower.bar(middle, [one["count"] for one in bins], width=0.86 / found["bins"], color=COLOURS[0])
    lower.set_ylabel("slices")
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    lower.set_xlim(0, 1)
    lower.set_xlabel("stated probability of the class given")
    lower.xaxis.set_major_formatter(PercentFormatter(1))
    figure.align_ylabels()
    words = "; ".join(f"stated {one['confidence']:.0%}, right {one['accuracy']:.0%}" for one in bins)
    error = found["expected_calibration_error"]
    return to_svg(figure, f"Reliability diagram, expected calibration error {error:.3f}, by bin: {words}.")
