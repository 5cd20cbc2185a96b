import shutil
from dataclasses import replace

import pytest

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, TrainConfig
from hsadml_dist.data.index import load_index, samples_table, table_digest, write_index
from hsadml_dist.data.loader import build_train_data, check_global_batch, held_out_folds
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import ConfigError, DataError


@pytest.fixture
def recipe(tiny_shards):
    data = DataConfig(shards=str(tiny_shards), fold=0, image_size=32, transforms=())
    return Recipe(data=data, train=TrainConfig(epochs=2, global_batch=6, seed=4))


def test_a_feed_leaves_the_held_out_folds_unread(recipe, tiny_shards):
    recipe = replace(recipe, data=replace(recipe.data, val_fold=2))
    train_data = build_train_data(recipe, Topology())
    index = load_index(tiny_shards)
    training = index.in_folds([1])
    assert train_data.order.count == len(training)
    assert train_data.total_steps == -(-2 * len(training) // 6)
    train_data.loader.start(1, train_data.total_steps)
    keys = {key for _ in range(train_data.total_steps) for key in train_data.loader.next(lambda: False).keys}
    assert keys == {index.samples[position].key for position in training}


def test_persons_are_learnt_where_the_recipe_says_so(recipe, tiny_shards, tmp_path):
    by_person = replace(recipe, data=replace(recipe.data, label="person"))
    with pytest.raises(DataError, match=r"data\.label: 'person' cannot be judged on folds split by person"):
        build_train_data(by_person, Topology())
    index = load_index(tiny_shards)
    halves = [replace(row, fold=place % 2) for place, row in enumerate(index.samples)]
    sliced = replace(index, split_unit="slice", samples=tuple(halves), digest=table_digest(samples_table(halves)))
    shutil.copytree(tiny_shards, tmp_path / "s")
    write_index(tmp_path / "s", sliced)
    train_data = build_train_data(
        replace(by_person, data=replace(by_person.data, shards=str(tmp_path / "s"))), Topology()
    )
    persons = sorted({row.person for row in index.samples})
    assert train_data.index.classes == tuple(persons) and len(persons) == 9
    train_data.loader.start(1, 3)
    whose = {row.key: row.person for row in index.samples}
    for _ in range(3):
        batch = train_data.loader.next(lambda: False)
        assert [persons[label] for label in batch.label.tolist()] == [whose[key] for key in batch.keys]


def test_steps_win_over_epochs_where_they_are_given(recipe):
    train_data = build_train_data(replace(recipe, train=TrainConfig(steps=7, global_batch=6, seed=4)), Topology())
    assert train_data.total_steps == 7
    assert (train_data.order.global_batch, train_data.order.seed) == (6, 4)


def test_folds_that_are_held_out(recipe):
    assert held_out_folds(recipe) == (0,)
    assert held_out_folds(replace(recipe, data=replace(recipe.data, val_fold=2))) == (0, 2)


def test_no_shards_no_feed(recipe, tmp_path):
    with pytest.raises(DataError, match=r"no index\.json"):
        build_train_data(replace(recipe, data=replace(recipe.data, shards=str(tmp_path))), Topology())


def test_a_fold_that_is_not_there_is_refused(recipe):
    with pytest.raises(DataError, match=r"fold 3: .*allowed: 0, 1, 2"):
        build_train_data(replace(recipe, data=replace(recipe.data, fold=3)), Topology())


def test_the_allowed_numbers_of_ranks_are_named(recipe):
    for world in (1, 2, 3, 6):
        check_global_batch(recipe, world)
    with pytest.raises(ConfigError, match=r"train\.global_batch: 6 .* by 4 ranks; .*: 1, 2, 3, 6$"):
        check_global_batch(recipe, 4)
    with pytest.raises(ConfigError, match=r"by 7 ranks"):
        build_train_data(recipe, Topology(rank=2, world_size=7))
