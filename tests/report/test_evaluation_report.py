"""Choice of example slices, and the report of an evaluation."""

from dataclasses import replace

import numpy as np

from hsadml_dist.data.index import SampleRow, ShardIndex
from hsadml_dist.evaluation.examples import cases, choose_examples
from hsadml_dist.evaluation.predictions import Predictions


def make(label, knn, cosine, persons) -> Predictions:
    count = len(label)
    return Predictions(
        classes=("a", "b", "c"),
        keys=tuple(f"k{n}" for n in range(count)),
        persons=tuple(persons),
        exams=(None,) * count,
        label_N=np.array(label),
        predicted={"knn": np.array(knn)},
        probability_NC=np.full((count, 3), 1 / 3),
        neighbour_keys=(("r",),) * count,
        cosine_NK=np.array(cosine, dtype=float)[:, None],
    )


MADE = make(
    label=[0, 0, 0, 1, 1, 1, 1, 2],
    knn=[0, 0, 0, 1, 0, 2, 0, 0],
    cosine=[0.9, 0.5, 0.7, 0.8, 0.6, 0.95, 0.99, 0.2],
    persons=["p", "p", "q", "r", "s", "s", "t", "u"],
)


def test_the_middle_of_each_class_then_the_plainest_errors_one_a_person():
    assert choose_examples(MADE) == (2, 3, 6, 5, 7)
    assert choose_examples(MADE, most_right=1, most_wrong=1) == (2, 6)


def test_where_persons_are_unknown_every_error_counts():
    assert choose_examples(replace(MADE, persons=(None,) * 8)) == (2, 3, 6, 5, 4, 7)


def test_without_errors_or_without_anything_right():
    assert choose_examples(make([0, 1], [0, 1], [0.1, 0.2], "pq")) == (0, 1)
    assert choose_examples(make([0, 1], [1, 0], [0.1, 0.2], "pq")) == (1, 0)


def test_pictures_and_words():
    rows = [("k0", 0), ("k1", 1), ("r", 1)]
    index = ShardIndex(
        source="table",
        classes=("a", "b", "c"),
        split_unit="person",
        folds=2,
        seed=0,
        size=8,
        digest="",
        shards=(),
        samples=tuple(
            SampleRow(key=key, shard=0, members={}, sha256="", label=label, person=None, exam=None, fold=0)
            for key, label in rows
        ),
    )
    made = make([0, 1], [1, 1], [0.25, 0.5], "pq")
    right, wrong = cases(made, index, lambda place: np.full((2, 2), place))
    assert (right.title, right.is_correct, wrong.title, wrong.is_correct) == (
        "b, found right",
        True,
        "a, taken for b",
        False,
    )
    assert (wrong.query.caption, wrong.query.image_HW[0, 0], wrong.query.same_class) == ("a", 0, None)
    (near,) = wrong.neighbours
    assert (near.caption, near.image_HW[0, 0], near.same_class) == ("b, cosine 0.250", 2, False)
    assert right.neighbours[0].same_class is True
