"""Choice of example slices for the report, with their images and captions."""

from dataclasses import replace

import numpy as np

from hsadml_dist.data.index import SampleRow, ShardIndex
from hsadml_dist.evaluation.result import Predictions
from hsadml_dist.report.neighbour_examples import build_examples, choose_examples


def make_predictions(label, knn, cosine, persons) -> Predictions:
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


PREDICTIONS = make_predictions(
    label=[0, 0, 0, 1, 1, 1, 1, 2],
    knn=[0, 0, 0, 1, 0, 2, 0, 0],
    cosine=[0.9, 0.5, 0.7, 0.8, 0.6, 0.95, 0.99, 0.2],
    persons=["p", "p", "q", "r", "s", "s", "t", "u"],
)


def test_choose_examples_takes_medians_then_clearest_errors_one_per_patient():
    assert choose_examples(PREDICTIONS) == (2, 3, 6, 5, 7)
    assert choose_examples(PREDICTIONS, max_correct=1, max_incorrect=1) == (2, 6)


def test_choose_examples_takes_every_error_if_patients_are_unknown():
    assert choose_examples(replace(PREDICTIONS, persons=(None,) * 8)) == (2, 3, 6, 5, 4, 7)


def test_choose_examples_with_correct_or_incorrect_slices_only():
    assert choose_examples(make_predictions([0, 1], [0, 1], [0.1, 0.2], "pq")) == (0, 1)
    assert choose_examples(make_predictions([0, 1], [1, 0], [0.1, 0.2], "pq")) == (1, 0)


def test_build_examples_adds_images_and_captions():
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
    made = make_predictions([0, 1], [1, 1], [0.25, 0.5], "pq")
    correct, incorrect = build_examples(made, index, lambda position: np.full((2, 2), position))
    assert (correct.is_correct, incorrect.is_correct) == (True, False)
    assert correct.title.split(",")[0] == "b"
    assert (incorrect.title.split(",")[0], incorrect.title.split()[-1]) == ("a", "b")
    assert (incorrect.query.caption, incorrect.query.image_HW[0, 0], incorrect.query.same_class) == ("a", 0, None)
    (near,) = incorrect.neighbours
    assert (near.caption, near.image_HW[0, 0], near.same_class) == ("b, cosine 0.250", 2, False)
    assert correct.neighbours[0].same_class is True
