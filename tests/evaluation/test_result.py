"""The verdict as a value and as text."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.result import CheckpointRef, People, Predictions, Result, Setting, judge

SETTING = Setting(
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
)
PERSONS = ["p", "p", "q", "q", "q", "r"]


def said(knn: list[int]) -> Predictions:
    label = np.array([0, 0, 1, 1, 1, 1])
    return Predictions(label_N=label, knn_N=np.array(knn), head_N=label, pixel_N=np.array([0, 1, 0, 0, 0, 0]))


def judged(knn: list[int], test: list[str | None], references: list[str | None]) -> Result:
    people = [People(persons=names, exams=[None] * len(names)) for names in (test, references)]
    return judge(SETTING, said(knn), test=people[0], references=people[1], resamples=300)


def test_figures_by_hand() -> None:
    result = judged([0, 2, 1, 1, 1, 0], PERSONS, ["s", "t", "t"])
    assert result.knn_accuracy == 4 / 6
    assert result.balanced_accuracy == (1 / 2 + 3 / 4) / 2
    assert (result.head_accuracy, result.raw_pixel_knn) == (1.0, 1 / 6)
    assert result.confusion == ((1, 0, 1), (1, 3, 0), (0, 0, 0))
    assert (result.persons, result.slices, result.reference_slices, result.shared_persons) == (3, 6, 3, 0)
    spans = result.intervals
    assert (spans.interval_unit, spans.units, spans.level, spans.resamples) == ("person", 3, 0.95, 300)
    assert spans.head_accuracy == (1.0, 1.0)
    assert spans.knn_accuracy is not None
    assert spans.knn_accuracy[0] < 4 / 6 < spans.knn_accuracy[1]


def test_persons_on_both_sides_are_counted_and_unknown_ones_are_not_called_none() -> None:
    assert judged([0] * 6, PERSONS, ["q", "r", "s", "q"]).shared_persons == 2
    unknown = judged([0] * 6, [*PERSONS[:5], None], ["q"])
    assert (unknown.persons, unknown.shared_persons, unknown.intervals.interval_unit) == (None, None, "slice")


def test_the_text_comes_back_to_the_last_digit() -> None:
    result = judged([0, 2, 1, 1, 1, 0], PERSONS, ["s"])
    assert Result.from_json(result.to_json()) == result
    assert json.loads(result.to_json())["knn_accuracy"] == 4 / 6
    single = dataclasses.replace(result, intervals=dataclasses.replace(result.intervals, knn_accuracy=None))
    assert Result.from_json(single.to_json()) == single


def test_thousands_of_classes_leave_out_what_grows_with_their_square() -> None:
    classes = 5000
    many = dataclasses.replace(SETTING, classes=tuple(map(str, range(classes))))
    people = People(persons=PERSONS, exams=PERSONS)
    result = judge(many, said([0, 4999, 1, 1, 1, 0]), test=people, references=people, resamples=100)
    assert (result.confusion, result.intervals.balanced_accuracy) == (None, None)
    assert result.balanced_accuracy == (1 / 2 + 3 / 4) / 2
    assert Result.from_json(result.to_json()) == result


def test_the_keys_that_other_programs_read_are_there() -> None:
    values = judged([0] * 6, PERSONS, ["s"]).to_dict()
    assert values.keys() >= {
        *("split_unit", "classes", "fold", "persons", "slices", "reference_slices", "knn_accuracy"),
        *("balanced_accuracy", "head_accuracy", "raw_pixel_knn", "intervals", "confusion", "checkpoint", "chosen_by"),
        *("seed", "loss", "world_size", "data_digest", "schema_version"),
    }
    assert values["intervals"].keys() >= {"knn_accuracy", "head_accuracy", "raw_pixel_knn", "interval_unit", "level"}
    assert values["checkpoint"].keys() == {"name", "step", "attempt"}


def test_other_texts_are_refused() -> None:
    with pytest.raises(DataError, match="damaged or cut short"):
        Result.from_json(judged([0] * 6, PERSONS, ["s"]).to_json()[:-20])
    with pytest.raises(DataError, match="schema_version 99: this version reads 1"):
        Result.from_json('{"schema_version": 99}')
