"""Facts and remarks of a run's report."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

import pytest

from hsadml_dist.report.run_facts import (
    class_outcomes,
    control_results,
    installed_versions,
    miscalibration,
    patient_votes,
    run_facts,
    settings,
    vote_interval,
    weak_classifiers,
)
from tests.report.report_samples import (
    calibration,
    cases_of,
    full_result_of,
    methods,
    patients_result_of,
    result_of,
    wilson,
)


def remarks(result: dict[str, Any]) -> list[str]:
    return run_facts(result, {})["remarks"]


def changed(where: str, key: str, value: object) -> dict[str, Any]:
    result = copy.deepcopy(result_of())
    (result[where] if where else result)[key] = value
    return result


@pytest.mark.parametrize("result", [result_of(), full_result_of()])
def test_remarks_of_sound_result_are_empty(result: dict[str, Any]) -> None:
    assert remarks(result) == []


@pytest.mark.parametrize(
    ("where", "key", "value", "facts"),
    [
        ("", "split_unit", "slice", ("split by slice", "patient")),
        ("", "shared_persons", 1, ("1 patient ",)),
        ("", "persons", None, ("patient ids",)),
        ("intervals", "interval_unit", "exam", ("exam", "patient")),
        ("intervals", "caution", "few_units", ("40 patients",)),
        ("", "source", "phantom", ("Generated",)),
        ("intervals", "knn_accuracy", [0.68, 0.9], ("raw pixels", "68.8%")),
        ("", "raw_pixel_knn", 0.9, ("raw pixels", "90.0%")),
        ("", "low_level_knn", 0.74, ("low-level features", "74.0%")),
        ("", "low_level_knn", 0.7185, ("low-level features", "9.4 points")),
    ],
)
def test_remarks_name_each_weakness_with_its_numbers(where: str, key: str, value: object, facts: tuple[str]) -> None:
    (remark,) = remarks(changed(where, key, value))
    for fact in facts:
        assert fact in remark


@pytest.mark.parametrize(
    ("where", "key", "value", "status"),
    [
        ("", "raw_pixel_knn", 0.6882, "exceeded"),
        ("", "raw_pixel_knn", 0.72, "close"),
        ("intervals", "knn_accuracy", [0.68, 0.9], "in_interval"),
        ("", "raw_pixel_knn", 0.9, "not_exceeded"),
    ],
)
def test_control_status_depends_on_interval_and_margin(where: str, key: str, value: object, status: str) -> None:
    (control,) = control_results(changed(where, key, value))
    assert (control.name, control.status) == ("raw pixels", status)


def test_control_status_without_interval_compares_the_accuracy_itself() -> None:
    result = changed("intervals", "knn_accuracy", None) | {"knn_accuracy": 0.68}
    assert [control.status for control in control_results(result)] == ["not_exceeded"]


def test_weak_classifiers_do_not_exceed_the_stronger_control() -> None:
    found = methods()
    found["svm"]["accuracy"] = 0.6882
    found["naive_bayes"]["accuracy"] = 0.5
    result = full_result_of() | {"methods": found}
    assert weak_classifiers(result) == (2, 6)
    (remark,) = remarks(result)
    assert "2 of 6" in remark


@pytest.mark.parametrize(("stated", "direction"), [(0.99, "overconfident"), (0.4, "underconfident")])
def test_miscalibration_names_its_direction_and_size(stated: float, direction: str) -> None:
    poor = calibration() | {"expected_calibration_error": 0.1}
    poor["reliability"] = [{"low": 0.0, "high": 1.0, "count": 30, "confidence": stated, "accuracy": 0.7}]
    assert miscalibration(poor) == direction
    (remark,) = remarks(full_result_of() | {"calibration": poor})
    assert "10.0 points" in remark and direction in remark


def test_miscalibration_of_good_or_missing_calibration_is_none() -> None:
    assert miscalibration(calibration()) is None
    assert miscalibration(None) is None


def test_remarks_on_patients_as_classes_replace_those_on_the_split() -> None:
    found = remarks(patients_result_of())
    assert len(found) == 3
    assert "300 patients" in found[0] and "split by slice" in found[0]
    assert "2 slices" in found[1]
    assert len(remarks(patients_result_of() | {"left_out": 0})) == 2


def test_metrics_come_with_controls_last_and_missing_ones_left_out() -> None:
    names = [metric.key for metric in run_facts(full_result_of(), {})["metrics"]]
    assert names == ["knn_accuracy", "balanced_accuracy", "head_accuracy", "raw_pixel_knn", "low_level_knn"]
    assert [metric.is_control for metric in run_facts(result_of(), {})["metrics"]] == [False] * 3 + [True]


@pytest.mark.parametrize(("correct", "cases", "ties"), [(35, 40, 2), (0, 7, 0), (9, 9, 0), (29, 31, 1)])
def test_patient_votes_are_recovered_from_the_accuracy(correct: int, cases: int, ties: int) -> None:
    votes = patient_votes({"accuracy": correct / cases, "cases": cases, "persons": cases, "ties": ties})
    assert (votes.correct, votes.tied, votes.incorrect) == (correct, ties, cases - correct - ties)


@pytest.mark.parametrize(("correct", "cases"), [(35, 40), (0, 7), (9, 9), (1, 1)])
def test_vote_interval_is_wilsons(correct: int, cases: int) -> None:
    vote = {"accuracy": correct / cases, "cases": cases, "persons": cases, "ties": 0}
    interval = vote_interval(full_result_of() | {"person_vote": vote})
    assert interval == pytest.approx(wilson(correct / cases, cases), abs=2e-5)


def test_class_outcomes_add_up_to_the_classes_with_slices() -> None:
    counts = class_outcomes({"classes": 10, "all_right": 3, "none_right": 2})
    assert list(counts.values()) == [3, 5, 2]


def test_incorrect_examples_are_counted() -> None:
    assert run_facts(result_of(), {}, cases_of(3))["incorrect_examples"] == 2


def test_installed_versions_start_with_python() -> None:
    found = installed_versions()
    assert found["torch"] == version("torch")
    assert next(iter(found)) == "Python"


def test_settings_are_flattened_without_unset_ones() -> None:
    assert dict(settings(full_result_of())) == {
        "data.image_size": "112",
        "model.embedding_dim": "64",
        "loss.margin": "4",
        "optimiser": "<adamw>",
    }
    assert settings(result_of()) == []


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"classes": ["a"]}, ("only one class",)),
        (
            {"balanced_classes": 2, "classes_without_test": ["class x"]},
            ("balanced accuracy", "over 2 of 3 classes", "class x"),
        ),
        ({"classes_without_gallery": ["class y"]}, ("training folds", "class y", "this class")),
        ({"controls_not_exceeded": ["majority"], "majority_accuracy": 0.9}, ("majority class", "90.0%")),
    ],
)
def test_remarks_name_gaps_in_the_classes_and_the_majority_class(changes: dict[str, Any], facts: tuple[str]) -> None:
    (remark,) = remarks({**result_of(), **changes})
    assert [fact for fact in facts if fact not in remark] == []
