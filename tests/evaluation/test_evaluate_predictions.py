"""Metrics and intervals computed from predictions, and ``result.json``."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from hsadml_dist.evaluation.evaluate import evaluate_predictions
from hsadml_dist.evaluation.geometry import geometry
from hsadml_dist.evaluation.patient_metrics import PatientIds
from hsadml_dist.evaluation.result import CheckpointRef, MethodMetrics, Predictions, Result, ResultContext

CONTEXT = ResultContext(
    split_unit="person",
    classes=("a", "b", "c"),
    fold=1,
    checkpoint=CheckpointRef(name="step-00000010.attempt-0001", step=10, attempt=1),
    chosen_by="last step",
    seed=7,
    loss="sphereface",
    model="resnet_gn_tiny",
    world_size=2,
    data_digest="0" * 64,
    recipe={"image_size": 64, "loss": {"name": "sphereface", "margin": None}},
)
PERSONS = ["p", "p", "q", "q", "q", "r"]


LABEL = np.array([0, 0, 1, 1, 1, 1])
GEOMETRY = geometry(np.eye(6)[:, :4] + 0.1, LABEL, np.eye(3, 4))


def make_predictions(
    knn: list[int], persons: list[str | None], classes: tuple[str, ...] = CONTEXT.classes
) -> Predictions:
    probability = np.full((6, len(classes)), 1 / len(classes))
    return Predictions(
        classes=classes,
        keys=tuple("abcdef"),
        persons=tuple(persons),
        exams=(None,) * 6,
        label_N=LABEL,
        predicted={
            "knn": np.array(knn),
            "head": LABEL,
            "raw_pixels": np.array([0, 1, 0, 0, 0, 0]),
            "low_level": np.zeros(6, dtype=np.int64),
            "svm": LABEL[::-1],
        },
        probability_NC=probability,
        neighbour_keys=(("r",),) * 6,
        cosine_NK=np.ones((6, 1)),
    )


def evaluate(knn: list[int], test: list[str | None], gallery: list[str | None]) -> Result:
    others = PatientIds(persons=gallery, exams=[None] * len(gallery))
    return evaluate_predictions(CONTEXT, make_predictions(knn, test), GEOMETRY, gallery=others)


def test_metrics_of_a_few_slices() -> None:
    result = evaluate([0, 2, 1, 1, 1, 0], PERSONS, ["s", "t", "t"])
    assert result.knn_accuracy == 4 / 6
    assert result.balanced_accuracy == (1 / 2 + 3 / 4) / 2
    assert (result.head_accuracy, result.raw_pixel_knn, result.low_level_knn) == (1.0, 1 / 6, 2 / 6)
    assert (result.methods["svm"].accuracy, result.methods["svm"].balanced_accuracy) == (2 / 6, (0 / 2 + 2 / 4) / 2)
    assert result.methods["knn"] == MethodMetrics(
        accuracy=result.knn_accuracy, balanced_accuracy=result.balanced_accuracy, interval=result.intervals.knn_accuracy
    )
    assert result.person_vote is not None
    assert (result.person_vote.persons, result.person_vote.accuracy, result.person_vote.ties) == (3, 1 / 3, 1)
    assert result.calibration.brier_score == pytest.approx(2 / 3)
    assert result.confusion == ((1, 0, 1), (1, 3, 0), (0, 0, 0))
    assert (result.persons, result.slices, result.reference_slices, result.shared_persons) == (3, 6, 3, 0)
    spans = result.intervals
    assert (spans.interval_unit, spans.units, spans.level, spans.method) == ("person", 3, 0.95, "jackknife_t")
    assert (spans.caution, spans.head_accuracy, spans.knn_accuracy) == ("too_few_units", None, None)


def test_five_patients_have_intervals_with_a_caution() -> None:
    spans = evaluate([0, 2, 1, 1, 1, 0], [*"abcd", "e", "e"], ["s"]).intervals
    assert (spans.units, spans.caution) == (5, "few_units")
    assert spans.knn_accuracy is not None
    assert spans.knn_accuracy[0] < 4 / 6 < spans.knn_accuracy[1]
    assert spans.head_accuracy is not None and spans.head_accuracy[1] == pytest.approx(1.0)


def test_confusions_are_those_of_the_nearest_neighbour() -> None:
    found = evaluate([0, 2, 1, 1, 1, 0], PERSONS, ["s"]).confusions
    assert (found.classes, found.all_right, found.none_right, found.pairs) == (2, 0, 0, 2)
    assert [(one.label, one.said, one.slices) for one in found.worst] == [(0, 2, 1), (1, 0, 1)]


def test_shared_patients_are_counted_and_unknown_ones_are_none() -> None:
    assert evaluate([0] * 6, PERSONS, ["q", "r", "s", "q"]).shared_persons == 2
    unknown = evaluate([0] * 6, [*PERSONS[:5], None], ["q"])
    assert (unknown.persons, unknown.shared_persons, unknown.intervals.interval_unit) == (None, None, "slice")


def test_result_json_keeps_every_digit() -> None:
    result = evaluate([0, 2, 1, 1, 1, 0], PERSONS, ["s"])
    assert json.loads(result.to_json()) == result.to_dict()
    assert json.loads(result.to_json())["knn_accuracy"] == 4 / 6


def test_result_of_many_classes_omits_the_confusion_matrix() -> None:
    classes = 5000
    many = dataclasses.replace(CONTEXT, classes=tuple(map(str, range(classes))))
    ids = PatientIds(persons=PERSONS, exams=PERSONS)
    predictions = make_predictions([0, 4999, 1, 1, 1, 0], PERSONS, many.classes)
    result = evaluate_predictions(many, predictions, GEOMETRY, gallery=ids)
    assert (result.confusion, result.intervals.balanced_accuracy) == (None, None)
    assert result.balanced_accuracy == (1 / 2 + 3 / 4) / 2


def test_result_has_the_documented_keys() -> None:
    values = evaluate([0] * 6, PERSONS, ["s"]).to_dict()
    assert values.keys() >= {
        *("split_unit", "classes", "fold", "persons", "slices", "reference_slices", "knn_accuracy"),
        *("balanced_accuracy", "head_accuracy", "raw_pixel_knn", "intervals", "confusion", "checkpoint", "chosen_by"),
        *("methods", "person_vote", "calibration", "geometry", "low_level_knn"),
        *("seed", "loss", "world_size", "data_digest", "schema_version"),
    }
    assert values["intervals"].keys() >= {"knn_accuracy", "head_accuracy", "raw_pixel_knn", "interval_unit", "level"}
    assert values["checkpoint"].keys() == {"name", "step", "attempt"}


def test_balanced_accuracy_names_the_classes_that_it_leaves_out() -> None:
    result = evaluate([0, 2, 1, 1, 1, 0], PERSONS, ["s", "t", "t"])
    assert (result.balanced_classes, result.classes_without_test) == (2, ("c",))


@pytest.mark.parametrize(
    ("knn", "majority", "names"),
    [
        ([0, 2, 1, 1, 1, 0], "a", ()),
        ([0, 2, 1, 1, 1, 0], "b", ("majority",)),
        ([1, 1, 1, 1, 0, 0], "b", ("low_level", "majority")),
        ([1, 1, 1, 0, 0, 0], None, ("raw_pixels", "low_level")),
    ],
)
def test_result_names_the_controls_that_it_does_not_exceed(knn: list[int], majority: str | None, names: tuple) -> None:
    """Raw pixels are right for 1 of 6 slices, low-level features for 2, class b for 4."""
    others = PatientIds(persons=["s"], exams=[None])
    context = dataclasses.replace(CONTEXT, majority_class=majority)
    result = evaluate_predictions(context, make_predictions(knn, PERSONS), GEOMETRY, gallery=others)
    assert result.controls_not_exceeded == names
    assert result.majority_accuracy == {"a": 2 / 6, "b": 4 / 6, None: None}[majority]
