import hashlib
import json
from dataclasses import replace

import pytest

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, TrainConfig
from hsadml_dist.config.schema import iter_settings

RECIPE = Recipe(data=DataConfig(shards="x"), train=TrainConfig(steps=4))
ADDED_LATER = {
    "optim.layer_decay": 0.5,
    "optim.ema_decay": 0.9,
    "model.batch_norm": "group",
    "model.freeze": ("neck",),
    "engine.tf32": True,
}


def changed(key, value):
    section, _, name = key.partition(".")
    return replace(RECIPE, **{section: replace(getattr(RECIPE, section), **{name: value})})


def conflicts(recipe):
    return {keys[0]: problem for keys, problem in recipe.conflicts()}


def test_unused_setting_added_later_keeps_fingerprint():
    assert {key for key, _, rule in iter_settings(RECIPE) if rule.added_later} == ADDED_LATER.keys()
    before = {key: value for key, value in RECIPE.identity().items() if key not in ADDED_LATER}
    text = json.dumps(before, sort_keys=True, default=list)
    assert RECIPE.fingerprint() == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("key", ADDED_LATER)
def test_used_setting_added_later_changes_fingerprint_and_identity(key):
    other = changed(key, ADDED_LATER[key])
    assert other.fingerprint() != RECIPE.fingerprint()
    assert other.identity()[key] != RECIPE.identity()[key]


@pytest.mark.parametrize(("key", "value"), [("train.steps", 9), ("data.workers", 2), ("engine.zero_stage", 1)])
def test_setting_that_may_change_on_resume_keeps_fingerprint(key, value):
    constant = replace(RECIPE, optim=replace(RECIPE.optim, schedule="constant"))
    section, _, name = key.partition(".")
    other = replace(constant, **{section: replace(getattr(constant, section), **{name: value})})
    assert other.fingerprint() == constant.fingerprint()


def test_length_is_fixed_under_a_cosine_schedule():
    assert changed("train.steps", 9).fingerprint() != RECIPE.fingerprint()


def test_recipe_without_conflicts_has_none():
    assert conflicts(RECIPE) == {}


@pytest.mark.parametrize("train", [TrainConfig(), TrainConfig(steps=1, epochs=1)])
def test_exactly_one_length_is_required(train):
    assert conflicts(replace(RECIPE, train=train)).keys() == {"train.steps"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.val_fold", 0),
        ("engine.accumulate", 3),
        ("engine.offload_optimizer", True),
        ("engine.deepspeed_config", "x.json"),
    ],
)
def test_conflict_names_key_and_value(key, value):
    assert str(value) in conflicts(changed(key, value))[key] or value is True


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"static_graph": True}, "engine.static_graph"),
        ({"compile": True}, "engine.compile"),
        ({"precision": "fp64"}, "engine.precision"),
        ({"zero_stage": 0, "offload_optimizer": True}, "engine.offload_optimizer"),
    ],
)
def test_settings_that_deepspeed_does_not_support_are_refused(settings, key):
    engine = EngineConfig(name="deepspeed", **settings)
    assert conflicts(replace(RECIPE, engine=engine)).keys() == {key}


@pytest.mark.parametrize("name", ["static_graph", "compile"])
def test_ddp_accepts_its_own_settings(name):
    assert conflicts(replace(RECIPE, engine=EngineConfig(**{name: True}))) == {}


@pytest.mark.parametrize(
    ("item", "facts"),
    [
        ({"prob": 1}, ["_target_", "monai.transforms.NAME"]),
        ({"_target_": "os.system"}, ["'os.system'", "monai.transforms.NAME"]),
        ({"_target_": "monai.transforms.utils.os.system"}, ["'monai.transforms.utils.os.system'"]),
        ({"_target_": "monai.transforms.RandFlip", "a": [{"b": "$1"}]}, ["'$1'"]),
        ({"_target_": "monai.transforms.RandFlip", "a": {"_target_": "os.system"}}, ["'os.system'"]),
        ({"_target_": "monai.transforms.RandFlip", "@a": 1}, ["'@a'"]),
    ],
)
def test_transform_that_could_run_code_is_refused(item, facts):
    good = {"_target_": "monai.transforms.RandFlip", "prob": 0.5}
    assert conflicts(changed("data.transforms", (good,))) == {}
    problem = conflicts(changed("data.transforms", (good, item)))["data.transforms"]
    assert "item 2" in problem
    assert all(fact in problem for fact in facts)


def test_total_steps_cover_the_epochs():
    assert [TrainConfig(epochs=epochs, global_batch=4).total_steps(10) for epochs in (1, 2, 3)] == [3, 5, 8]
    assert TrainConfig(steps=7).total_steps(10) == 7
