import hashlib
import json
from dataclasses import replace

import pytest

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, TrainConfig
from hsadml_dist.config.schema import iter_settings
from hsadml_dist.config.yaml_loader import dump_recipe, load_recipe
from hsadml_dist.errors import ConfigError

RECIPE = Recipe(data=DataConfig(shards="x"), train=TrainConfig(steps=4))
LATER = {"optim.layer_decay": 0.5, "optim.ema_decay": 0.9, "model.batch_norm": "group", "model.freeze": ("neck",)}


def changed(key, value):
    section, _, name = key.partition(".")
    return replace(RECIPE, **{section: replace(getattr(RECIPE, section), **{name: value})})


def test_a_run_that_was_made_before_a_setting_was_there_keeps_its_fingerprint():
    assert {key for key, _, rule in iter_settings(RECIPE) if rule.added_later} == LATER.keys()
    before = {key: value for key, value in RECIPE.identity().items() if key not in LATER}
    text = json.dumps(before, sort_keys=True, default=list)
    assert RECIPE.fingerprint() == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("key", LATER)
def test_a_setting_that_came_later_counts_as_soon_as_it_is_used(key):
    other = changed(key, LATER[key])
    assert other.fingerprint() != RECIPE.fingerprint()
    assert other.identity()[key] != RECIPE.identity()[key], "a change on an existing run is seen"


@pytest.mark.parametrize("key", ["static_graph", "compile"])
def test_what_only_ddp_knows_is_refused_elsewhere(key):
    assert list(EngineConfig(**{key: True}).conflicts()) == []
    faults = list(EngineConfig(name="deepspeed", **{key: True}).conflicts())
    assert faults == [(f"engine.{key}", "true is for engine.name 'ddp', which is 'deepspeed'")]


GOOD = "data: {shards: out/x}\ntrain: {steps: 5}\n"


def load(tmp_path, model):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{GOOD}model: {model}\n")
    return load_recipe(path).recipe


def test_parts_to_freeze_are_read_and_written_as_they_are(tmp_path):
    recipe = load(tmp_path, "{freeze: [backbone.stem, backbone.blocks.0], batch_norm: group}")
    assert (recipe.model.freeze, recipe.model.batch_norm) == (("backbone.stem", "backbone.blocks.0"), "group")
    dump_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml").recipe == recipe


def test_as_they_are_published_is_the_default(tmp_path):
    model = load(tmp_path, "{}").model
    assert (model.batch_norm, model.freeze) == ("keep", ())


@pytest.mark.parametrize("model", ["{freeze: [backbone.stem]}", "{batch_norm: group}"])
def test_both_are_part_of_what_the_run_is(tmp_path, model):
    assert load(tmp_path, model).fingerprint() != load(tmp_path, "{}").fingerprint()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("{batch_norm: grouped}", r"model\.batch_norm: 'grouped' is not .*keep.*group.*sync"),
        ("{freeze: [1]}", r"model\.freeze: .*is not"),
        ("{freeze: backbone.stem}", r"model\.freeze: .*is not"),
    ],
)
def test_other_values_are_refused(tmp_path, model, text):
    with pytest.raises(ConfigError, match=text) as fault:
        load(tmp_path, model)
    assert str(fault.value).count("\n") == 0
