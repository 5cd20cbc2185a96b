"""What is said of a verdict, and what is held against it."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

import pytest

from hsadml_dist.report.formatting import headline, remarks
from hsadml_dist.report.run_facts import provenance_table, settings, software
from tests.report.report_samples import VERSIONS, calibration, full_result_of, methods, persons_of, result_of


def test_one_sentence_says_it_all() -> None:
    assert headline(result_of()) == (
        "81.2% of 30 unseen slices of 40 persons have their nearest neighbour, among 1,633 training slices, in the"
        " right class (95% interval by person: 73.1% to 88.3%). Raw pixels alone reach 68.8%. Folds are split by"
        " person."
    )


def test_persons_as_classes_are_found_again() -> None:
    assert headline(persons_of()).startswith(
        "81.2% of 3,000 unseen slices of 40 persons have as their nearest neighbour, among 1,633 training slices, one"
        " of the same person (95% interval by person: 73.1% to 88.3%)."
    )
    said = list(remarks(persons_of()))
    assert [part for part in said if "telling 300 persons apart in other slices of theirs, split by slice" in part]
    assert [part for part in said if "find out whether that person is in the training data" in part]
    assert len(said) == 3
    assert len(list(remarks(persons_of() | {"left_out": 0}))) == 2


def test_an_interval_below_a_control_does_not_reach_down_to_it() -> None:
    result = copy.deepcopy(result_of()) | {"raw_pixel_knn": 0.9}
    assert [remark for remark in remarks(result) if "it does not exceed what raw pixels give (90.0%)" in remark]


def test_both_controls_are_named() -> None:
    assert "Raw pixels alone reach 68.8%, low-level features 65.2%." in headline(full_result_of())


@pytest.mark.parametrize("result", [result_of(), full_result_of()])
def test_nothing_is_held_against_a_sound_verdict(result: dict[str, Any]) -> None:
    assert list(remarks(result)) == []


@pytest.mark.parametrize(
    ("where", "key", "value", "words"),
    [
        ("", "split_unit", "slice", "slices of one person may stand in training and test"),
        ("", "shared_persons", 1, "1 person of the test fold also occur"),
        ("", "persons", None, "name no persons"),
        ("intervals", "interval_unit", "exam", "drawn by exam, not by person"),
        ("intervals", "units", 6, "Only 6 persons in the test fold"),
        ("intervals", "knn_accuracy", [0.68, 0.9], "reaches down to what raw pixels give (68.8%)"),
        ("", "low_level_knn", 0.74, "reaches down to what low-level features give (74.0%)"),
        ("", "low_level_knn", 0.7185, "low-level features, without learning, come within 9.4 points"),
    ],
)
def test_what_stands_against_a_verdict_is_said(where: str, key: str, value: object, words: str) -> None:
    result = copy.deepcopy(result_of())
    (result[where] if where else result)[key] = value
    assert [remark for remark in remarks(result) if words in remark]


def test_without_an_interval_the_figure_itself_must_clear_the_control() -> None:
    result = copy.deepcopy(result_of()) | {"knn_accuracy": 0.68}
    result["intervals"]["knn_accuracy"] = None
    assert [remark for remark in remarks(result) if "it does not exceed what raw pixels give" in remark]


def test_classifiers_below_the_stronger_control_are_counted() -> None:
    found = methods()
    found["svm"]["accuracy"] = 0.6882
    found["naive_bayes"]["accuracy"] = 0.5
    said = list(remarks(full_result_of() | {"methods": found}))
    assert said == ["2 of 6 other classifiers do no better than the stronger control."]


@pytest.mark.parametrize(("stated", "tone"), [(0.99, "too sure"), (0.4, "too cautious")])
def test_poor_calibration_is_said_with_its_direction(stated: float, tone: str) -> None:
    poor = calibration() | {"expected_calibration_error": 0.1}
    poor["reliability"] = [{"low": 0.0, "high": 1.0, "count": 30, "confidence": stated, "accuracy": 0.7}]
    (said,) = remarks(full_result_of() | {"calibration": poor})
    assert said.startswith("Poor calibration: the stated probabilities are 10.0 points off") and tone in said


def test_versions_are_those_installed() -> None:
    found = software()
    assert found["torch"] == version("torch")
    assert next(iter(found)) == "Python"


def test_settings_are_flattened_and_unset_ones_left_out() -> None:
    named = dict(settings(full_result_of()))
    assert named == {"image size": "112", "embedding dim": "64", "loss.margin": "4", "optimiser": "<adamw>"}
    assert settings(result_of()) == []


def test_the_table_names_weights_data_and_software() -> None:
    rows = dict(provenance_table(result_of(), VERSIONS).rows)
    assert rows["weights"] == "step-00000600.attempt-0001: step 600, attempt 1"
    assert rows["data (SHA-256 of the table of samples)"] == "ab" * 32
    assert rows["software of the verdict"] == "Python 3.11.7, torch 2.13.0"
    assert dict(provenance_table(result_of(), {}).rows)["software of the verdict"] == "not recorded"
