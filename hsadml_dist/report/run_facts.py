"""Compute the facts that a run's report, CLAIM checklist and model card state. The sentences are in the templates."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from statistics import NormalDist
from typing import Any

from hsadml_dist.report.formatting import (
    CONTROLS,
    classes_are_patients,
    counted,
    interval_caution,
    is_generated,
    ordered_methods,
    percent,
    unit_title,
)
from hsadml_dist.report.neighbour_examples import NeighbourExample
from hsadml_dist.report.page import render_paragraphs
from hsadml_dist.report.trained_facts import trained_counts, trained_mark, trained_reasons

METRICS = {
    "knn_accuracy": "k-NN accuracy (k = 1)",
    "balanced_accuracy": "balanced accuracy (k-NN)",
    "head_accuracy": "nearest class centre",
    "raw_pixel_knn": "raw pixels (control)",
    "low_level_knn": "low-level features (control)",
}
"""Keys of a result and their display names."""
CONTROL_METRICS = {"raw_pixels": "raw_pixel_knn", "low_level": "low_level_knn"}
"""The metric that holds the accuracy of a control."""
OPTIONAL = (
    "low_level_knn",
    "methods",
    "person_vote",
    "calibration",
    "geometry",
    "label",
    "source",
    "left_out",
    "trained_slices",
    "trained_persons",
    "trained_unknown",
    "confusions",
    "recipe",
    "balanced_classes",
    "classes_without_test",
    "classes_without_gallery",
    "majority_class",
    "majority_accuracy",
    "controls_not_exceeded",
)
"""Keys that results of older versions lack."""
PACKAGES = ("hsadml-dist", "torch", "monai", "deepspeed", "webdataset", "numpy", "scipy", "scikit-learn")
"""Packages that can influence the numbers."""
SETTING_KEYS = {
    "image_size": "data.image_size",
    "embedding_dim": "model.embedding_dim",
    "precision": "engine.precision",
}
"""Recipe keys of settings that a result holds without their section."""
POOR_CALIBRATION = 0.1
"""Expected calibration error from which the report warns."""
_CLOSE = 0.1
"""The report warns if a control is nearer than this to the k-NN accuracy."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of a result; value and interval are shares of 1."""

    key: str
    name: str
    value: float
    interval: Sequence[float] | None
    is_control: bool


@dataclass(frozen=True, kw_only=True)
class ControlResult:
    """The accuracy of a control against the k-NN accuracy.

    Attributes:
        name: The control's name within a sentence.
        status: ``not_exceeded``: the k-NN interval is not above the control; ``in_interval``: it includes the control;
            ``close``: it is above the control, but the accuracy by less than ten points; ``exceeded`` otherwise.
        margin: k-NN accuracy minus the control's.
    """

    name: str
    accuracy: float
    status: str
    margin: float


@dataclass(frozen=True, kw_only=True)
class PatientVotes:
    """Number of patients by the majority vote of their slices."""

    correct: int
    tied: int
    incorrect: int


def run_facts(
    result: Mapping[str, Any], versions: Mapping[str, str], examples: Sequence[NeighbourExample] = ()
) -> dict[str, Any]:
    """Return the values that all templates of a run use, from ``result.json``, versions by package, and examples."""
    result = {**dict.fromkeys(OPTIONAL), **result}
    intervals = result["intervals"]
    patients = "unknown number of patients" if result["persons"] is None else counted(result["persons"], "patient")
    facts = {
        "result": result,
        "intervals": intervals,
        "level": percent(intervals["level"], 0),
        "unit": unit_title(intervals["interval_unit"]),
        "split_unit": unit_title(result["split_unit"]),
        "is_generated": is_generated(result),
        "patients_are_classes": classes_are_patients(result),
        "sample": f"{counted(result['slices'], 'slice')}, {patients}",
        "trained": trained_counts(result),
        "trained_reasons": trained_reasons(result),
        "unknown_training": bool(set(result["trained_unknown"] or ()) - {"no_patient_ids"}),
        "mark": trained_mark(result),
        "caution": interval_caution(intervals.get("caution"), intervals["units"], intervals["interval_unit"]),
        "metrics": list(metrics(result)),
        "methods": ordered_methods(result["methods"] or {}),
        "controls": list(control_results(result)),
        "control_names": list(CONTROLS.values()),
        "classifiers": weak_classifiers(result),
        "miscalibration": miscalibration(result["calibration"]),
        "votes": result["person_vote"] and patient_votes(result["person_vote"]),
        "vote_interval": result["person_vote"] and vote_interval(result),
        "settings": settings(result),
        "software": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "class_outcomes": result["confusions"] and class_outcomes(result["confusions"]),
        "incorrect_examples": sum(not one.is_correct for one in examples),
    }
    return {**facts, "remarks": render_paragraphs("run_remarks.txt.j2", facts)}


def metrics(result: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the metrics that a result holds, controls last."""
    for key, name in METRICS.items():
        if result.get(key) is not None:
            yield Metric(
                key=key,
                name=name,
                value=result[key],
                interval=result["intervals"].get(key),
                is_control=key in CONTROL_METRICS.values(),
            )


def control_results(result: Mapping[str, Any]) -> Iterator[ControlResult]:
    """Yield the controls that a result holds, compared with its k-NN accuracy."""
    value, interval = result["knn_accuracy"], result["intervals"]["knn_accuracy"]
    low, high = interval or (value, value)
    for method, key in CONTROL_METRICS.items():
        accuracy = result.get(key)
        if accuracy is None:
            continue
        if low <= accuracy:
            status = "in_interval" if interval and high >= accuracy else "not_exceeded"
        else:
            status = "close" if value - accuracy < _CLOSE else "exceeded"
        yield ControlResult(name=CONTROLS[method], accuracy=accuracy, status=status, margin=value - accuracy)


def weak_classifiers(result: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many classifiers besides k-NN (k = 1) do not exceed the stronger control, and how many there are."""
    others = [
        figures for name, figures in (result.get("methods") or {}).items() if name != "knn" and name not in CONTROLS
    ]
    floor = max((control.accuracy for control in control_results(result)), default=0.0)
    return sum(figures["accuracy"] <= floor for figures in others), len(others)


def miscalibration(calibration: Mapping[str, Any] | None) -> str | None:
    """Return ``overconfident`` or ``underconfident`` for poorly calibrated probabilities; None for others."""
    if not calibration or calibration["expected_calibration_error"] < POOR_CALIBRATION:
        return None
    excess = sum(one["count"] * (one["confidence"] - one["accuracy"]) for one in calibration["reliability"])
    return "overconfident" if excess > 0 else "underconfident"


def class_outcomes(confusions: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of classes with all, some and none of their test slices correct."""
    all_correct, none_correct = confusions["all_right"], confusions["none_right"]
    some_correct = confusions["classes"] - all_correct - none_correct
    return {"all slices correct": all_correct, "some correct": some_correct, "none correct": none_correct}


def patient_votes(vote: Mapping[str, Any]) -> PatientVotes:
    """Return the counts behind ``result["person_vote"]``."""
    correct = round(vote["accuracy"] * vote["cases"])
    return PatientVotes(correct=correct, tied=vote["ties"], incorrect=vote["cases"] - correct - vote["ties"])


def vote_interval(result: Mapping[str, Any]) -> tuple[float, float]:
    """Return Wilson's interval of the accuracy per patient, at the level of the other intervals.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927.
    """
    share, number = result["person_vote"]["accuracy"], result["person_vote"]["cases"]
    z = NormalDist().inv_cdf((1 + result["intervals"]["level"]) / 2)
    middle, shrink = share + z * z / (2 * number), 1 + z * z / number
    half = z * (share * (1 - share) / number + z * z / (4 * number * number)) ** 0.5
    return max(0.0, (middle - half) / shrink), min(1.0, (middle + half) / shrink)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed :data:`PACKAGES`."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def settings(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the recipe settings of a result as (key, value), by the keys of a recipe; unset ones are left out."""
    found = _flatten(result.get("recipe") or {})
    return [(SETTING_KEYS.get(key, key), text) for key, text in found if text not in ("None", "")]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
