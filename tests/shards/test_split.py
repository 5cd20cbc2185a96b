import json
import random
from collections import Counter, defaultdict

import pytest

from hsadml_dist.data.index import load_index
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.source import SourceRecord
from hsadml_dist.shards.split import assign_folds, check_split, choose_unit, splits, splits_text, units


def make_record(number: int, person: int, class_name: str = "a", fold: int | None = None) -> SourceRecord:
    return SourceRecord(
        record_id=f"row {number}",
        where=f"row {number}",
        class_name=class_name,
        person=f"person {person}",
        exam=str(number % 2),
        fold=fold,
    )


def cohort(seed: int, persons: int = 60) -> list[SourceRecord]:
    rng = random.Random(seed)
    records: list[SourceRecord] = []
    for person in range(persons):
        class_name = rng.choices("abc", [1, 2, 4])[0]
        records.extend(make_record(len(records) + k, person, class_name) for k in range(rng.randint(1, 14)))
    return records


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("split_by", ["person", "exam", "slice"])
def test_no_unit_is_in_two_folds_and_all_folds_are_used(seed, split_by):
    records = cohort(seed)
    folds = assign_folds(records, split_by, 5, seed)
    found = defaultdict(set)
    for unit, fold in zip(units(records, split_by), folds, strict=True):
        found[unit].add(fold)
    assert {len(own) for own in found.values()} == {1}
    assert set(folds) == set(range(5))


@pytest.mark.parametrize("seed", range(8))
def test_folds_hold_each_class_in_equal_parts(seed):
    records = cohort(seed)
    folds = assign_folds(records, "person", 5, seed)
    for class_name in "abc":
        counts = Counter(fold for record, fold in zip(records, folds, strict=True) if record.class_name == class_name)
        spread = max(counts.values()) - min(counts.get(fold, 0) for fold in range(5))
        assert spread <= 14  # the largest person


def test_slice_folds_differ_by_one_sample_a_class():
    records = [make_record(number, number, "ab"[number % 2]) for number in range(53)]
    folds = assign_folds(records, "slice", 5, 0)
    for class_name in "ab":
        counts = Counter(fold for record, fold in zip(records, folds, strict=True) if record.class_name == class_name)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_same_seed_same_folds_in_any_order_of_rows():
    records = cohort(1)
    mixed = records[::-1]
    assert assign_folds(records, "person", 5, 3) == assign_folds(mixed, "person", 5, 3)[::-1]


def test_another_seed_gives_other_folds():
    records = cohort(1)
    assert len({assign_folds(records, "person", 5, seed) for seed in range(5)}) == 5


def test_folds_are_those_of_the_first_release():
    records = [make_record(number, number // 2, "ab"[number // 2 % 2]) for number in range(12)]
    assert assign_folds(records, "person", 3, 0) == (0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 1)


def test_one_exam_number_of_two_persons_is_two_units():
    records = [make_record(0, 1), make_record(2, 2)]
    assert len(set(units(records, "exam"))) == 2


def test_more_folds_than_persons():
    with pytest.raises(DataError, match=r"--folds 5: .*persons \(2\).*2 \.\.\. 2"):
        assign_folds([make_record(n, n % 2) for n in range(9)], "person", 5, 0)


@pytest.mark.parametrize("folds", [1, 0, -3])
def test_too_few_folds(folds):
    with pytest.raises(UsageError, match="at least 2"):
        check_split("person", folds)


def test_unknown_unit_names_the_nearest():
    with pytest.raises(UsageError, match=r"person, exam, slice.*mean 'person'"):
        check_split("persons", 5)


@pytest.mark.parametrize(
    ("records", "unit"),
    [
        ([{"person": "a", "exam": "1"}, {"person": "b", "exam": "1"}], "person"),
        ([{"person": "a"}, {}], "person"),
        ([{"exam": "1"}, {"exam": "2"}], "exam"),
        ([{}, {}], "slice"),
    ],
)
def test_the_unit_is_the_largest_that_the_source_names(records, unit):
    made = [
        SourceRecord(record_id=str(n), where=f"row {n}", class_name="c", **names) for n, names in enumerate(records)
    ]
    assert choose_unit(made, None) == unit
    assert choose_unit(made, "slice") == "slice"


def test_a_missing_person_names_the_row():
    records = [make_record(1, 1), SourceRecord(record_id="row 2", where="row 2", class_name="a")]
    with pytest.raises(DataError, match=r"row 2 names no person.*exam, slice"):
        assign_folds(records, "person", 2, 0)
    assert set(assign_folds(records, "slice", 2, 0)) == {0, 1}


def test_prescribed_folds_are_obeyed():
    records = [make_record(number, number // 2, fold=4 - number // 2) for number in range(6)]
    assert assign_folds(records, "person", 5, 0) == (4, 4, 3, 3, 2, 2)


def test_prescribed_folds_that_tear_a_person_apart_are_refused():
    records = [make_record(1, 7, fold=0), make_record(2, 8, fold=1), make_record(3, 7, fold=2)]
    with pytest.raises(DataError, match=r"row 1 in 0, row 3 in 2"):
        assign_folds(records, "person", 5, 0)
    assert assign_folds(records, "slice", 5, 0) == (0, 1, 2)


def test_half_a_fold_column_is_refused():
    with pytest.raises(DataError, match="row 2 has none"):
        assign_folds([make_record(1, 1, fold=0), make_record(2, 2)], "person", 5, 0)


def test_each_fold_is_held_out_once_and_trains_on_the_rest(small_shards):
    index = load_index(small_shards)
    entries = splits(index)
    assert len(entries) == index.folds
    keys = {row.key for row in index.samples}
    for fold, entry in enumerate(entries):
        assert set(entry) == {"train", "val"}
        assert set(entry["val"]) == {row.key for row in index.samples if row.fold == fold}
        assert set(entry["train"]) == keys - set(entry["val"])
        assert entry["val"] == sorted(entry["val"]) and entry["train"] == sorted(entry["train"])


def test_the_file_holds_them(small_shards):
    text = (small_shards / "splits.json").read_text()
    assert text == splits_text(load_index(small_shards))
    assert json.loads(text) == splits(load_index(small_shards))
