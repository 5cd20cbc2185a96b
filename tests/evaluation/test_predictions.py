import json
from dataclasses import replace

import numpy as np
import pytest

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.predictions import MAX_LISTED_CLASSES, TOP_PROBABILITIES, Predictions, parse, read

MADE = Predictions(
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


def test_the_text_brings_back_every_digit():
    found = parse(MADE.to_json())
    assert (found.classes, found.keys, found.persons, found.exams) == (
        MADE.classes,
        MADE.keys,
        MADE.persons,
        MADE.exams,
    )
    assert found.neighbour_keys == MADE.neighbour_keys
    np.testing.assert_array_equal(found.probability_NC, MADE.probability_NC)
    np.testing.assert_array_equal(found.cosine_NK, MADE.cosine_NK)
    assert found.predicted.keys() == MADE.predicted.keys()
    for method, labels in MADE.predicted.items():
        np.testing.assert_array_equal(found.predicted[method], labels)
    assert (len(found), found.label_N.dtype) == (3, np.int64)


def of_many(classes: int) -> Predictions:
    probability = np.random.default_rng(0).dirichlet(np.full(classes, 0.2), size=3)
    return replace(MADE, classes=tuple(map(str, range(classes))), probability_NC=probability)


def test_few_classes_are_listed_whole():
    made = of_many(MAX_LISTED_CLASSES)
    assert "probable" not in json.loads(made.to_json())
    np.testing.assert_array_equal(parse(made.to_json()).probability_NC, made.probability_NC)


def test_of_many_classes_the_most_probable_ones_are_kept_with_every_digit():
    made = of_many(300)
    values = json.loads(made.to_json())
    found = parse(made.to_json()).probability_NC
    assert found.shape == (3, 300)
    for row, whole, listed in zip(found, made.probability_NC, values["probabilities"], strict=True):
        highest = sorted(whole.tolist(), reverse=True)[:TOP_PROBABILITIES]
        assert listed == highest == sorted(row[row > 0].tolist(), reverse=True)
        np.testing.assert_array_equal(row, np.where(whole >= highest[-1], whole, 0))
    np.testing.assert_array_equal(found.argmax(axis=1), made.probability_NC.argmax(axis=1))
    with pytest.raises(DataError, match="damaged"):
        parse(json.dumps({**values, "probable": [[0, 1, 2, 3, 300]] * 3}))


def test_which_slices_a_method_has_right():
    assert MADE.correct("knn").tolist() == [True, True, False]
    with pytest.raises(KeyError):
        MADE.correct("none")


@pytest.mark.parametrize(
    "change",
    [{"keys": ["k1"]}, {"labels": [0, 1]}, {"said": {"knn": [0]}}, {"probabilities": [[1.0, 0.0]]}, {"cosines": []}],
)
def test_columns_of_different_lengths_are_refused(change):
    with pytest.raises(DataError, match=r"differ in length|damaged"):
        parse(json.dumps({**json.loads(MADE.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', "3", MADE.to_json()[:-30]])
def test_what_is_damaged_is_refused(text):
    with pytest.raises(DataError, match="damaged"):
        parse(text)


def test_another_version_is_refused():
    with pytest.raises(DataError, match="schema_version 7: this version reads 1"):
        parse(json.dumps({**json.loads(MADE.to_json()), "schema_version": 7}))


def test_a_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"predictions.json: cannot be read: No such file.*hsadml evaluate"):
        read(tmp_path / "predictions.json")
    path = tmp_path / "predictions.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"predictions.json: predictions.json is damaged.*hsadml evaluate"):
        read(path)
    path.write_text(replace(MADE, classes=("x", "y")).to_json())
    assert read(path).classes == ("x", "y")
