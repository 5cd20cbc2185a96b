"""The section on classifiers: every method on the same embeddings, with the controls as lines through all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from hsadml_dist.report.drawing import (
    COLOURS,
    CONTROL_STYLES,
    INK,
    WIDTH,
    EmbeddedImage,
    named_y_axis,
    new_figure,
    percent_x_axis,
    to_svg,
)
from hsadml_dist.report.page import Table
from hsadml_dist.report.section import ReportSection
from hsadml_dist.report.wording import CONTROLS, level_text, share_text, span_text

METHODS = {
    "knn": "k-NN, k = 1",
    "knn_5": "k-NN, k = 5",
    "knn_11": "k-NN, k = 11",
    "knn_21": "k-NN, k = 21",
    "head": "nearest class centre",
    "svm": "support vector machine",
    "logistic_regression": "logistic regression",
    "random_forest": "random forest",
    "naive_bayes": "naive Bayes",
    "raw_pixels": "raw pixels (control)",
    "low_level": "low-level features (control)",
}
"""Every method that has a name of its own, in the order of the page; others come after them under their own key."""


def classifiers_section(result: Mapping[str, Any]) -> ReportSection:
    """Return the section on ``result["methods"]``."""
    methods = ordered_methods(result["methods"])
    level = level_text(result["intervals"])
    rows = [
        [
            method_title(name),
            share_text(one["accuracy"]),
            span_text(one["interval"]),
            share_text(one["balanced_accuracy"]),
        ]
        for name, one in methods.items()
    ]
    table = Table(
        caption="Every method, the controls last: right by slice, and by slice averaged over classes",
        head=("method", "accuracy", f"{level} interval", "balanced accuracy"),
        rows=rows,
    )
    text = (
        "Each method reads the same embeddings and is fitted on the training folds alone; the controls read no"
        " embeddings. If they agree, the embeddings carry the figure and not the classifier. The method of this report"
        " is k-NN with k = 1, fixed beforehand: the best of many, picked after the fact, is flattered by the picking."
    )
    return ReportSection(
        title="Other classifiers", text=text, picture=_draw_classifiers(methods, level), tables=[table]
    )


def ordered_methods(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the methods in the page's order, the controls last."""
    last = [name for name in CONTROLS if name in methods]
    known = [name for name in METHODS if name in methods and name not in last]
    unknown = sorted(set(methods) - set(METHODS))
    return {name: methods[name] for name in (*known, *unknown, *last)}


def method_title(method: str) -> str:
    """Return a method's name for readers."""
    return METHODS.get(method, method.replace("_", " "))


def _draw_classifiers(methods: Mapping[str, Mapping[str, Any]], level: str) -> EmbeddedImage:
    learnt = [name for name in methods if name not in CONTROLS]
    controls = [name for name in CONTROLS if name in methods]
    figure, axes = new_figure(WIDTH, 0.38 * max(len(learnt), 1) + 1.25)
    for row, name in enumerate(learnt):
        one = methods[name]
        if one["interval"]:
            axes.plot(one["interval"], [row, row], color=COLOURS[0], linewidth=2, solid_capstyle="butt", zorder=2)
        axes.plot(one["accuracy"], row, "o", color=COLOURS[0], markersize=8, markeredgecolor="white", zorder=4)
        axes.plot(one["balanced_accuracy"], row + 0.27, "^", color=INK, markersize=4.5, zorder=3)
    keys = [
        Line2D([], [], color=COLOURS[0], marker="o", markersize=8, linewidth=2, label=f"accuracy, {level} interval"),
        Line2D([], [], color=INK, marker="^", linestyle="", markersize=5, label="balanced accuracy"),
    ]
    for name, (colour, _, line) in zip(controls, _looks(controls), strict=True):
        value = methods[name]["accuracy"]
        axes.axvline(value, color=colour, linewidth=1.6, linestyle=line, zorder=1)
        keys.append(
            Line2D([], [], color=colour, linewidth=1.6, linestyle=line, label=f"{method_title(name)} {value:.1%}")
        )
    named_y_axis(axes, [method_title(name) for name in learnt])
    percent_x_axis(axes)
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    words = "; ".join(f"{method_title(name)} {one['accuracy']:.1%}" for name, one in methods.items())
    return to_svg(figure, f"Points on a scale from 0 to 100 %, the controls as lines through all of them: {words}.")


def _looks(controls: Sequence[str]) -> list[tuple[str, str, Any]]:
    return [look for name, look in zip(CONTROLS, CONTROL_STYLES, strict=True) if name in controls]
