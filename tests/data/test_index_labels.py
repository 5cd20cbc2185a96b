"""The labels to learn: classes of the shards, or patients."""

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


def test_class_labels_are_unchanged() -> None:
    index = index_of("person", (None,) * 8)
    assert apply_label_setting(index, replace(DATA, label="class")) is index
    assert label_problem(index, replace(DATA, label="class")) is None


def test_person_labels_make_each_patient_a_class() -> None:
    index = index_of()
    found = apply_label_setting(index, DATA)
    assert found.classes == ("ann", "bob", "zoe")
    assert [found.classes[row.label] for row in found.samples] == list(PERSONS)
    assert replace(found, classes=index.classes, samples=index.samples) == index
    for mine, row in zip(found.samples, index.samples, strict=True):
        assert replace(mine, label=row.label) == row


def test_person_labels_do_not_depend_on_sample_order() -> None:
    index = index_of()
    turned = apply_label_setting(replace(index, samples=index.samples[::-1]), DATA)
    assert turned.classes == apply_label_setting(index, DATA).classes
    assert turned.samples[::-1] == apply_label_setting(index, DATA).samples


@pytest.mark.parametrize(
    ("index", "facts"),
    [
        (index_of("person"), ["split by person", "--split-by slice or exam"]),
        (index_of(persons=(*PERSONS[:5], None, None, "x")), ["2 of 8 slices", "'class'"]),
        (index_of("exam", ("a", "b") * 4), ["fold 0", "--split-by slice"]),
    ],
)
def test_impossible_label_is_refused(index: ShardIndex, facts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        apply_label_setting(index, DATA)
    assert str(caught.value).startswith("data.label: 'person' ") and "\n" not in str(caught.value)
    assert all(fact in str(caught.value) for fact in facts)


def test_validation_fold_does_not_count_as_training() -> None:
    index = index_of("exam", ("b", "b", "c", "a", "b", "c"), folds=3)  # b is in folds 0 and 1
    assert label_problem(index, replace(DATA, fold=1)) is None
    assert "fold 1" in str(label_problem(index, replace(DATA, fold=1, val_fold=0)))


def test_unknown_fold_is_no_label_problem() -> None:
    assert label_problem(index_of(), replace(DATA, fold=9)) is None
