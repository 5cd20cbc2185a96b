import json
from dataclasses import replace

import pytest

from hsadml_dist.config import Recipe
from hsadml_dist.config.deepspeed_options import AUTO, FREE, REFUSED, build_deepspeed_options
from hsadml_dist.config.recipe import DataConfig, EngineConfig, TrainConfig
from hsadml_dist.errors import ConfigError

RECIPE = Recipe(
    data=DataConfig(shards="none"),
    train=TrainConfig(steps=4, global_batch=48),
    engine=EngineConfig(name="deepspeed", zero_stage=3, accumulate=2, clip_norm=2.5),
)


@pytest.fixture
def with_file(tmp_path):
    """Return a function: a recipe that names a file of the given text or settings."""

    def make(content):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return replace(RECIPE, engine=replace(RECIPE.engine, deepspeed_config=str(path)))

    return make


def told(recipe, world=4):
    with pytest.raises(ConfigError) as refusal:
        build_deepspeed_options(recipe, world)
    return [str(fault) for fault in refusal.value.faults]


def test_a_recipe_alone_sets_all_that_counts():
    settings = build_deepspeed_options(RECIPE, 4)
    assert settings["gradient_accumulation_steps"] == 2
    assert settings["train_micro_batch_size_per_gpu"] == 6
    assert settings["gradient_clipping"] == 2.5
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "none"


def test_no_clipping_is_said_aloud():
    unclipped = replace(RECIPE, engine=replace(RECIPE.engine, clip_norm=None))
    assert build_deepspeed_options(unclipped, 4)["gradient_clipping"] == 0.0


def test_a_file_adds_what_the_recipe_leaves_open(with_file):
    given = {"zero_optimization": {"stage": AUTO, "overlap_comm": True, "reduce_bucket_size": 7}, "steps_per_print": 9}
    settings = build_deepspeed_options(with_file(given), 4)
    assert settings["zero_optimization"]["overlap_comm"] is True
    assert settings["zero_optimization"]["reduce_bucket_size"] == 7
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["steps_per_print"] == 9


def test_a_file_may_repeat_the_recipe(with_file):
    given = {"train_batch_size": 48, "train_micro_batch_size_per_gpu": 6, "gradient_clipping": 2.5}
    assert build_deepspeed_options(with_file(given), 4) == build_deepspeed_options(RECIPE, 4)


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"train_batch_size": 64}, "train_batch_size", ["64", "48", "train.global_batch"]),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", ["8", "6", "number of ranks"]),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps", ["engine.accumulate"]),
        ({"gradient_clipping": 1.0}, "gradient_clipping", ["2.5", "engine.clip_norm"]),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage", ["2", "3", "engine.zero_stage"]),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage", ["True"]),
        ({"optimizer": {"type": "Adam"}}, "optimizer", ["section optim"]),
        ({"bf16": {"enabled": True}}, "bf16", ["engine.precision"]),
        (
            {"zero_optimization": {"overlap_com": True}},
            "zero_optimization.overlap_com",
            ["'zero_optimization.overlap_comm'"],
        ),
        ({"step_per_print": 1}, "step_per_print", ["'steps_per_print'", "wall_clock_breakdown"]),
        ({"zero_optimization": {"overlap_comm": 1}}, "zero_optimization.overlap_comm", ["true or false"]),
        ({"steps_per_print": True}, "steps_per_print", ["whole number"]),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, "zero_optimization.reduce_bucket_size", ["at least 0"]),
    ],
)
def test_what_clashes_is_refused_with_its_key(with_file, given, key, words):
    recipe = with_file(given)
    (line,) = told(recipe)
    assert line.startswith(f"{recipe.engine.deepspeed_config}: {key}")
    assert "\n" not in line
    for word in words:
        assert word in line


def test_all_faults_come_at_once(with_file):
    assert len(told(with_file({"optimizer": {}, "train_batch_size": 1, "hello": 2}))) == 3


@pytest.mark.parametrize(
    ("text", "what"),
    [("{", "no JSON"), ("[]", "no JSON object"), ('{"steps_per_print": 1, "steps_per_print": 2}', "given twice")],
)
def test_what_is_no_settings_file_is_refused(with_file, text, what):
    (line,) = told(with_file(text))
    assert "engine.deepspeed_config" in line
    assert what in line


def test_a_missing_file_is_named(tmp_path):
    engine = replace(RECIPE.engine, deepspeed_config=str(tmp_path / "none.json"))
    (line,) = told(replace(RECIPE, engine=engine))
    assert "none.json" in line
    assert "No such file" in line


def test_no_key_has_two_places():
    assert not FREE.keys() & REFUSED.keys()


@pytest.mark.parametrize(
    ("engine", "key"),
    [
        (EngineConfig(offload_optimizer=True), "engine.offload_optimizer"),
        (EngineConfig(deepspeed_config="x.json"), "engine.deepspeed_config"),
        (EngineConfig(name="deepspeed", precision="fp64"), "engine.precision"),
        (EngineConfig(name="deepspeed", zero_stage=0, offload_optimizer=True), "engine.offload_optimizer"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_named(engine, key):
    assert [found for found, _ in replace(RECIPE, engine=engine).conflicts()] == [key]
