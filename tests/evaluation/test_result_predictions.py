"""``predictions.json``: round trip, large numbers of classes, and damaged files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.result import (
    MAX_LISTED_CLASSES,
    TOP_PROBABILITIES,
    Predictions,
    parse_predictions,
    read_predictions,
)

PREDICTIONS = Predictions(
    classes=("a", "b"),
    keys=("k1", "k2", "k3"),
    persons=("p", "p", None),
    exams=(None, None, "e"),
    label_N=np.array([0, 1, 1]),
    predicted={"knn": np.array([0, 1, 0]), "head": np.array([1, 1, 1])},
    probability_NC=np.array([[0.1, 0.9], [1 / 3, 2 / 3], [0.5, 0.5]]),
    neighbour_keys=(("r1", "r2"), ("r2", "r1"), ("r1", "r3")),
    cosine_NK=np.array([[0.9, 0.1], [1 / 7, 0.0], [1.0, -1.0]]),
)


def test_predictions_round_trip_keeps_every_digit():
    found = parse_predictions(PREDICTIONS.to_json())
    assert (found.classes, found.keys, found.persons, found.exams) == (
        PREDICTIONS.classes,
        PREDICTIONS.keys,
        PREDICTIONS.persons,
        PREDICTIONS.exams,
    )
    assert found.neighbour_keys == PREDICTIONS.neighbour_keys
    np.testing.assert_array_equal(found.probability_NC, PREDICTIONS.probability_NC)
    np.testing.assert_array_equal(found.cosine_NK, PREDICTIONS.cosine_NK)
    assert found.predicted.keys() == PREDICTIONS.predicted.keys()
    for method, labels in PREDICTIONS.predicted.items():
        np.testing.assert_array_equal(found.predicted[method], labels)
    assert (len(found), found.label_N.dtype) == (3, np.int64)


def with_classes(classes: int) -> Predictions:
    probability = np.random.default_rng(0).dirichlet(np.full(classes, 0.2), size=3)
    return replace(PREDICTIONS, classes=tuple(map(str, range(classes))), probability_NC=probability)


def test_few_classes_keep_all_probabilities():
    made = with_classes(MAX_LISTED_CLASSES)
    assert "probable" not in json.loads(made.to_json())
    np.testing.assert_array_equal(parse_predictions(made.to_json()).probability_NC, made.probability_NC)


def test_many_classes_keep_the_highest_probabilities():
    made = with_classes(300)
    values = json.loads(made.to_json())
    found = parse_predictions(made.to_json()).probability_NC
    assert found.shape == (3, 300)
    for row, whole, listed in zip(found, made.probability_NC, values["probabilities"], strict=True):
        highest = sorted(whole.tolist(), reverse=True)[:TOP_PROBABILITIES]
        assert listed == highest == sorted(row[row > 0].tolist(), reverse=True)
        np.testing.assert_array_equal(row, np.where(whole >= highest[-1], whole, 0))
    np.testing.assert_array_equal(found.argmax(axis=1), made.probability_NC.argmax(axis=1))
    with pytest.raises(DataError, match="damaged"):
        parse_predictions(json.dumps({**values, "probable": [[0, 1, 2, 3, 300]] * 3}))


def test_correct_compares_predicted_and_true_classes():
    assert PREDICTIONS.correct("knn").tolist() == [True, True, False]
    with pytest.raises(KeyError):
        PREDICTIONS.correct("none")


@pytest.mark.parametrize(
    "change",
    [{"keys": ["k1"]}, {"labels": [0, 1]}, {"said": {"knn": [0]}}, {"probabilities": [[1.0, 0.0]]}, {"cosines": []}],
)
def test_columns_of_different_lengths_are_refused(change):
    with pytest.raises(DataError, match="damaged"):
        parse_predictions(json.dumps({**json.loads(PREDICTIONS.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', "3", PREDICTIONS.to_json()[:-30]])
def test_damaged_text_is_refused(text):
    with pytest.raises(DataError, match="damaged"):
        parse_predictions(text)


def test_unknown_schema_version_is_refused():
    with pytest.raises(DataError, match=r"schema_version: 7 .*1$"):
        parse_predictions(json.dumps({**json.loads(PREDICTIONS.to_json()), "schema_version": 7}))


def test_read_predictions_names_the_file_and_the_command(tmp_path):
    with pytest.raises(DataError, match=r"predictions.json: cannot be read.*hsadml evaluate"):
        read_predictions(tmp_path / "predictions.json")
    path = tmp_path / "predictions.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"predictions.json: damaged.*hsadml evaluate"):
        read_predictions(path)
    path.write_text(replace(PREDICTIONS, classes=("x", "y")).to_json())
    assert read_predictions(path).classes == ("x", "y")
