import json
import random
from collections import Counter, defaultdict

import pytest

from hsadml_dist.data.index import load_index
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.source import SourceRecord
from hsadml_dist.shards.split import (
    assign_folds,
    assign_shards,
    check_split,
    choose_split_unit,
    nnunet_splits,
    nnunet_splits_text,
    shard_name,
    split_groups,
)


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
def test_assign_folds_keeps_groups_together_and_uses_all_folds(seed, split_by):
    records = cohort(seed)
    folds = assign_folds(records, split_by, 5, seed)
    found = defaultdict(set)
    for unit, fold in zip(split_groups(records, split_by), folds, strict=True):
        found[unit].add(fold)
    assert {len(own) for own in found.values()} == {1}
    assert set(folds) == set(range(5))


@pytest.mark.parametrize("seed", range(8))
def test_assign_folds_balances_classes(seed):
    records = cohort(seed)
    folds = assign_folds(records, "person", 5, seed)
    for class_name in "abc":
        counts = Counter(fold for record, fold in zip(records, folds, strict=True) if record.class_name == class_name)
        spread = max(counts.values()) - min(counts.get(fold, 0) for fold in range(5))
        assert spread <= 14  # the largest person


def test_assign_folds_by_slice_differ_by_one_sample_per_class():
    records = [make_record(number, number, "ab"[number % 2]) for number in range(53)]
    folds = assign_folds(records, "slice", 5, 0)
    for class_name in "ab":
        counts = Counter(fold for record, fold in zip(records, folds, strict=True) if record.class_name == class_name)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_assign_folds_does_not_depend_on_row_order():
    records = cohort(1)
    mixed = records[::-1]
    assert assign_folds(records, "person", 5, 3) == assign_folds(mixed, "person", 5, 3)[::-1]


def test_assign_folds_depends_on_seed():
    records = cohort(1)
    assert len({assign_folds(records, "person", 5, seed) for seed in range(5)}) == 5


def test_assign_folds_matches_first_release():
    records = [make_record(number, number // 2, "ab"[number // 2 % 2]) for number in range(12)]
    assert assign_folds(records, "person", 3, 0) == (0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 1)


def test_split_groups_separates_equal_exams_of_two_patients():
    records = [make_record(0, 1), make_record(2, 2)]
    assert len(set(split_groups(records, "exam"))) == 2


def test_assign_folds_rejects_more_folds_than_groups():
    with pytest.raises(DataError, match=r"--folds 5: .*2 patients.*2 \.\.\. 2"):
        assign_folds([make_record(n, n % 2) for n in range(9)], "person", 5, 0)


@pytest.mark.parametrize("folds", [1, 0, -3])
def test_check_split_rejects_too_few_folds(folds):
    with pytest.raises(UsageError, match=rf"--folds {folds}: .*allowed: 2"):
        check_split("person", folds)


def test_check_split_suggests_nearest_unit():
    with pytest.raises(UsageError, match=r"--split-by 'persons': .*person, exam, slice.*'person'"):
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
def test_choose_split_unit_defaults_to_largest_named_unit(records, unit):
    made = [
        SourceRecord(record_id=str(n), where=f"row {n}", class_name="c", **names) for n, names in enumerate(records)
    ]
    assert choose_split_unit(made, None) == unit
    assert choose_split_unit(made, "slice") == "slice"


def test_assign_folds_missing_patient_names_the_row():
    records = [make_record(1, 1), SourceRecord(record_id="row 2", where="row 2", class_name="a")]
    with pytest.raises(DataError, match=r"row 2 .*exam, slice"):
        assign_folds(records, "person", 2, 0)
    assert set(assign_folds(records, "slice", 2, 0)) == {0, 1}


def test_assign_folds_uses_prescribed_folds():
    records = [make_record(number, number // 2, fold=4 - number // 2) for number in range(6)]
    assert assign_folds(records, "person", 5, 0) == (4, 4, 3, 3, 2, 2)


def test_assign_folds_rejects_prescribed_folds_that_split_a_patient():
    records = [make_record(1, 7, fold=0), make_record(2, 8, fold=1), make_record(3, 7, fold=2)]
    with pytest.raises(DataError, match=r"row 1 in 0, row 3 in 2"):
        assign_folds(records, "person", 5, 0)
    assert assign_folds(records, "slice", 5, 0) == (0, 1, 2)


def test_assign_folds_rejects_incomplete_fold_column():
    with pytest.raises(DataError, match="row 2"):
        assign_folds([make_record(1, 1, fold=0), make_record(2, 2)], "person", 5, 0)


def test_nnunet_splits_hold_out_each_fold_once(small_shards):
    index = load_index(small_shards)
    entries = nnunet_splits(index)
    assert len(entries) == index.folds
    keys = {row.key for row in index.samples}
    for fold, entry in enumerate(entries):
        assert set(entry) == {"train", "val"}
        assert set(entry["val"]) == {row.key for row in index.samples if row.fold == fold}
        assert set(entry["train"]) == keys - set(entry["val"])
        assert entry["val"] == sorted(entry["val"]) and entry["train"] == sorted(entry["train"])


def test_nnunet_splits_file_matches(small_shards):
    text = (small_shards / "splits.json").read_text()
    assert text == nnunet_splits_text(load_index(small_shards))
    assert json.loads(text) == nnunet_splits(load_index(small_shards))


RECORDS = [
    SourceRecord(record_id=f"row {n}", where=f"row {n}", class_name="a", person=f"person {n // 10}") for n in range(103)
]
FOLDS = [n % 3 for n in range(103)]


@pytest.mark.parametrize("limit", [1, 7, 10, 34, 35, 1000])
def test_assign_shards_uses_every_sample_once_within_limit(limit):
    plan = assign_shards(RECORDS, FOLDS, limit, 0)
    assert sorted(position for tar in plan for position in tar) == list(range(103))
    assert 1 <= min(map(len, plan)) <= max(map(len, plan)) <= limit


def test_assign_shards_keeps_one_fold_per_tar_ascending():
    folds = [{FOLDS[position] for position in tar} for tar in assign_shards(RECORDS, FOLDS, 10, 0)]
    assert all(len(own) == 1 for own in folds)
    assert [min(own) for own in folds] == sorted(min(own) for own in folds)


def test_assign_shards_balances_tar_lengths():
    for fold in range(3):
        lengths = [len(tar) for tar in assign_shards(RECORDS, FOLDS, 10, 0) if FOLDS[tar[0]] == fold]
        assert max(lengths) - min(lengths) <= 1


def test_assign_shards_mixes_patients():
    first = assign_shards(RECORDS, [0] * 103, 20, 0)[0]
    assert len({RECORDS[position].person for position in first}) >= 5


def test_assign_shards_order_follows_seed_not_rows():
    order = [RECORDS[position].record_id for tar in assign_shards(RECORDS, FOLDS, 10, 0) for position in tar]
    turned = [
        RECORDS[::-1][position].record_id
        for tar in assign_shards(RECORDS[::-1], FOLDS[::-1], 10, 0)
        for position in tar
    ]
    assert order == turned
    other = [RECORDS[position].record_id for tar in assign_shards(RECORDS, FOLDS, 10, 1) for position in tar]
    assert order != other


def test_shard_names_sort_as_numbers():
    assert shard_name(7) == "shard-00007.tar"
    assert sorted(map(shard_name, (100, 20, 3))) == [shard_name(n) for n in (3, 20, 100)]
