import shutil
from dataclasses import replace

import pytest

from hsadml_dist.config.recipe import DataConfig, TrainConfig
from hsadml_dist.data.index import load_index, samples_table, table_digest, write_index
from hsadml_dist.data.loader import build_train_data, check_global_batch
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import ConfigError, DataError

TRAIN = TrainConfig(epochs=2, global_batch=6, seed=4)


@pytest.fixture
def data(tiny_shards):
    return DataConfig(shards=str(tiny_shards), fold=0, image_size=32, transforms=())


def test_held_out_folds_are_never_read(data, tiny_shards):
    train_data = build_train_data(replace(data, val_fold=2), TRAIN, Topology())
    index = load_index(tiny_shards)
    training = index.in_folds([1])
    assert train_data.order.count == len(training)
    assert train_data.total_steps == -(-2 * len(training) // 6)
    train_data.loader.start(1, train_data.total_steps)
    keys = {key for _ in range(train_data.total_steps) for key in train_data.loader.next(lambda: False).keys}
    assert keys == {index.samples[position].key for position in training}


def test_person_labels_are_learned_if_the_split_allows(data, tiny_shards, tmp_path):
    by_person = replace(data, label="person")
    with pytest.raises(DataError, match=r"data\.label: 'person'.*split by person"):
        build_train_data(by_person, TRAIN, Topology())
    index = load_index(tiny_shards)
    halves = [replace(row, fold=place % 2) for place, row in enumerate(index.samples)]
    sliced = replace(index, split_unit="slice", samples=tuple(halves), digest=table_digest(samples_table(halves)))
    shutil.copytree(tiny_shards, tmp_path / "s")
    write_index(tmp_path / "s", sliced)
    train_data = build_train_data(replace(by_person, shards=str(tmp_path / "s")), TRAIN, Topology())
    persons = sorted({row.person for row in index.samples})
    assert train_data.index.classes == tuple(persons) and len(persons) == 9
    train_data.loader.start(1, 3)
    person_of = {row.key: row.person for row in index.samples}
    for _ in range(3):
        batch = train_data.loader.next(lambda: False)
        assert [persons[label] for label in batch.label.tolist()] == [person_of[key] for key in batch.keys]


def test_total_steps_may_be_given(data):
    train_data = build_train_data(data, TrainConfig(steps=7, global_batch=6, seed=4), Topology())
    assert train_data.total_steps == 7
    assert (train_data.order.global_batch, train_data.order.seed) == (6, 4)


def test_held_out_folds_are_test_and_validation_fold(data):
    assert data.held_out_folds == (0,)
    assert replace(data, val_fold=2).held_out_folds == (0, 2)


def test_missing_shards_are_named(data, tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}.*index.json"):
        build_train_data(replace(data, shards=str(tmp_path)), TRAIN, Topology())


def test_unknown_fold_is_refused_with_allowed_folds(data):
    with pytest.raises(DataError, match=r"fold 3: .*allowed: 0, 1, 2"):
        build_train_data(replace(data, fold=3), TRAIN, Topology())


def test_global_batch_must_be_divisible_by_the_number_of_ranks(data):
    for world in (1, 2, 3, 6):
        check_global_batch(6, world)
    with pytest.raises(ConfigError, match=r"train\.global_batch: 6 .* 4 ranks; allowed: 1, 2, 3, 6"):
        check_global_batch(6, 4)
    with pytest.raises(ConfigError, match="7 ranks"):
        build_train_data(data, TRAIN, Topology(rank=2, world_size=7))
