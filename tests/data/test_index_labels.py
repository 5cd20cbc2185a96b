"""What a label is: a class of the shards, or a person."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hsadml_dist.config.recipe import DataConfig
from hsadml_dist.data.index import ShardIndex, apply_label_setting, label_problem
from hsadml_dist.errors import DataError
from tests.data.test_index import make_index, make_row

PERSONS = ("zoe", "ann", "bob", "ann", "zoe", "ann", "bob", "zoe")
DATA = DataConfig(shards="s", label="person", fold=0)


def index_of(unit: str = "slice", persons: tuple[str | None, ...] = PERSONS, folds: int = 2) -> ShardIndex:
    rows = [make_row(number, person=person, fold=number % folds) for number, person in enumerate(persons)]
    return replace(make_index(rows), split_unit=unit)


def test_classes_are_left_as_they_are() -> None:
    index = index_of("person", (None,) * 8)
    assert apply_label_setting(index, replace(DATA, label="class")) is index
    assert label_problem(index, replace(DATA, label="class")) is None


def test_each_person_is_a_class_and_the_samples_stay_the_same() -> None:
    index = index_of()
    found = apply_label_setting(index, DATA)
    assert found.classes == ("ann", "bob", "zoe")
    assert [found.classes[row.label] for row in found.samples] == list(PERSONS)
    assert replace(found, classes=index.classes, samples=index.samples) == index
    for mine, row in zip(found.samples, index.samples, strict=True):
        assert replace(mine, label=row.label) == row


def test_the_order_of_the_samples_has_no_part_in_the_labels() -> None:
    index = index_of()
    turned = apply_label_setting(replace(index, samples=index.samples[::-1]), DATA)
    assert turned.classes == apply_label_setting(index, DATA).classes
    assert turned.samples[::-1] == apply_label_setting(index, DATA).samples


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (index_of("person"), r"training knows nobody of the test fold; build .* --split-by slice or exam$"),
        (index_of(persons=(*PERSONS[:5], None, None, "x")), r"2 of 8 slices name none; use shards .*, or 'class'$"),
        (index_of("exam", ("a", "b") * 4), r"fold 0: nobody in it has a slice in the training folds; .*by slice$"),
    ],
)
def test_what_cannot_be_learnt_is_refused_in_one_line(index: ShardIndex, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        apply_label_setting(index, DATA)
    assert str(caught.value).startswith("data.label: 'person' ") and "\n" not in str(caught.value)


def test_a_validation_fold_teaches_nobody() -> None:
    index = index_of("exam", ("b", "b", "c", "a", "b", "c"), folds=3)  # b is in folds 0 and 1
    assert label_problem(index, replace(DATA, fold=1)) is None
    assert "nobody in it has a slice" in str(label_problem(index, replace(DATA, fold=1, val_fold=0)))


def test_a_fold_that_is_not_there_is_for_others_to_refuse() -> None:
    assert label_problem(index_of(), replace(DATA, fold=9)) is None
