"""Format numbers, units and names for the report and the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hsadml_dist.printable import printable

MISSING = "-"
MAX_LISTED = 5
"""Names that a sentence lists; it counts the others."""
CONTROLS = {"raw_pixels": "raw pixels", "low_level": "low-level features"}
"""Methods without learning, and their names within a sentence."""
GENERATED_SOURCE = "phantom"
"""The source of generated patients."""
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
    **{key: f"{name} (control)" for key, name in CONTROLS.items()},
}
"""Display names in the order of the tables. Other methods follow under their own key."""
LOSSES = {"softmax": "softmax", "sphereface": "SphereFace", "cosface": "CosFace"}
"""Losses as their papers spell them."""


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share as a percentage."""
    return MISSING if share is None else f"{share:.{digits}%}"


def percent_interval(bounds: Sequence[float] | None) -> str:
    """Format the bounds of an interval of shares as percentages."""
    return MISSING if bounds is None else f"{bounds[0]:.1%} to {bounds[1]:.1%}"


def points(difference: float) -> str:
    """Format a difference of shares in signed percentage points."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def points_interval(bounds: Sequence[float] | None) -> str:
    """Format the bounds of an interval of differences in percentage points."""
    return MISSING if bounds is None else f"{points(bounds[0])} to {points(bounds[1])}"


def p_value(p: float) -> str:
    """Format a p-value without its leading zero; small ones as a bound."""
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".lstrip("0") if p < 0.1 else "1" if p > 0.995 else f"{p:.2f}".lstrip("0")


def p_equation(p: float) -> str:
    """Return ``p = .24`` or ``p < .001`` with no-break spaces."""
    number = p_value(p)
    text = f"p {number}" if number.startswith("<") else f"p = {number}"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def degrees(angle: float | None, digits: int = 1) -> str:
    """Format an angle in degrees; None and NaN are missing."""
    return MISSING if angle is None or math.isnan(angle) else f"{angle:.{digits}f}°"


def thousands(number: int | None) -> str:
    """Format a count with separators."""
    return MISSING if number is None else f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return the first :data:`MAX_LISTED` names, and the number of the others."""
    rest = len(names) - MAX_LISTED
    return ", ".join(map(printable, names[:MAX_LISTED])) + (f" and {rest:,} more" if rest > 0 else "")


def method_title(method: str) -> str:
    """Return the display name of a method."""
    return METHODS.get(method, method.replace("_", " "))


def ordered_methods(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Return the methods in display order, controls last."""
    controls = [name for name in CONTROLS if name in methods]
    known = [name for name in METHODS if name in methods and name not in controls]
    unknown = sorted(set(methods) - set(METHODS))
    return {name: methods[name] for name in (*known, *unknown, *controls)}


def loss_title(loss: str) -> str:
    """Return the name of a loss as its paper spells it."""
    return LOSSES.get(loss, loss)


def unit_title(unit: str) -> str:
    """Return the word for a split or resampling unit; the column ``person`` holds patients."""
    return "patient" if unit == "person" else unit


def interval_caution(caution: str | None, units: int, unit: str) -> str | None:
    """Return in a sentence what a ``caution`` code in ``result.json`` means; None without a code."""
    number = counted(units, unit_title(unit))
    sentences = {
        "too_few_units": f"With only {number}, there are no intervals: the accuracies are anecdotal.",
        "few_units": f"With only {number}, the intervals are rough.",
    }
    return None if caution is None else sentences[caution]


def is_generated(origin: Mapping[str, Any]) -> bool:
    """Return whether a result or a pool is of generated patients."""
    return origin.get("source") == GENERATED_SOURCE


def classes_are_patients(result: Mapping[str, Any]) -> bool:
    """Return whether each class is one patient."""
    return result.get("label") == "person"


FILTERS = {
    "counted": counted,
    "degrees": degrees,
    "interval": percent_interval,
    "listed": listed,
    "loss": loss_title,
    "method": method_title,
    "p_equation": p_equation,
    "p_value": p_value,
    "percent": percent,
    "points": points,
    "points_interval": points_interval,
    "thousands": thousands,
    "unit": unit_title,
}
"""Filters of the templates."""
