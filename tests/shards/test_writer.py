import pytest

from hsadml_dist.shards.source import SourceRecord
from hsadml_dist.shards.writer import plan_shards, shard_name

RECORDS = [
    SourceRecord(record_id=f"row {n}", where=f"row {n}", class_name="a", person=f"person {n // 10}") for n in range(103)
]
FOLDS = [n % 3 for n in range(103)]


@pytest.mark.parametrize("most", [1, 7, 10, 34, 35, 1000])
def test_every_sample_once_and_no_tar_too_long(most):
    plan = plan_shards(RECORDS, FOLDS, most, 0)
    assert sorted(place for tar in plan for place in tar) == list(range(103))
    assert 1 <= min(map(len, plan)) <= max(map(len, plan)) <= most


def test_a_tar_holds_one_fold_and_folds_ascend():
    folds = [{FOLDS[place] for place in tar} for tar in plan_shards(RECORDS, FOLDS, 10, 0)]
    assert all(len(own) == 1 for own in folds)
    assert [min(own) for own in folds] == sorted(min(own) for own in folds)


def test_tars_of_a_fold_are_of_even_length():
    for fold in range(3):
        lengths = [len(tar) for tar in plan_shards(RECORDS, FOLDS, 10, 0) if FOLDS[tar[0]] == fold]
        assert max(lengths) - min(lengths) <= 1


def test_persons_are_mixed():
    first = plan_shards(RECORDS, [0] * 103, 20, 0)[0]
    assert len({RECORDS[place].person for place in first}) >= 5


def test_the_order_follows_the_seed_and_not_the_rows():
    order = [RECORDS[place].record_id for tar in plan_shards(RECORDS, FOLDS, 10, 0) for place in tar]
    turned = [RECORDS[::-1][place].record_id for tar in plan_shards(RECORDS[::-1], FOLDS[::-1], 10, 0) for place in tar]
    assert order == turned
    other = [RECORDS[place].record_id for tar in plan_shards(RECORDS, FOLDS, 10, 1) for place in tar]
    assert order != other


def test_names_sort_as_numbers():
    assert shard_name(7) == "shard-00007.tar"
    assert sorted(map(shard_name, (100, 20, 3))) == [shard_name(n) for n in (3, 20, 100)]
