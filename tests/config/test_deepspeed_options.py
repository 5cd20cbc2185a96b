import json
from dataclasses import replace

import pytest

from hsadml_dist.config.deepspeed_options import AUTO, FREE, REFUSED, ZERO, build_deepspeed_options
from hsadml_dist.config.recipe import EngineConfig
from hsadml_dist.errors import ConfigError

ENGINE = EngineConfig(name="deepspeed", zero_stage=3, accumulate=2, clip_norm=2.5)
GLOBAL_BATCH, WORLD_SIZE = 48, 4


@pytest.fixture
def with_file(tmp_path):
    """Return a function: the engine settings with a file of the given text or options."""

    def make(content):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return replace(ENGINE, deepspeed_config=str(path))

    return make


def build(engine):
    return build_deepspeed_options(engine, GLOBAL_BATCH, WORLD_SIZE)


def faults(engine):
    with pytest.raises(ConfigError) as caught:
        build(engine)
    return caught.value.faults


def test_options_follow_from_the_recipe():
    options = build(ENGINE)
    assert options["gradient_accumulation_steps"] == 2
    assert options["train_micro_batch_size_per_gpu"] == 6
    assert options["gradient_clipping"] == 2.5
    assert options["zero_optimization"]["stage"] == 3
    assert options["zero_optimization"]["offload_optimizer"]["device"] == "none"
    assert "train_batch_size" not in options


def test_no_clipping_is_explicit():
    assert build(replace(ENGINE, clip_norm=None))["gradient_clipping"] == 0.0


def test_file_sets_options_that_the_recipe_does_not(with_file):
    given = {"zero_optimization": {"stage": AUTO, "overlap_comm": True, "reduce_bucket_size": 7}, "steps_per_print": 9}
    options = build(with_file(given))
    assert options["zero_optimization"]["overlap_comm"] is True
    assert options["zero_optimization"]["reduce_bucket_size"] == 7
    assert options["zero_optimization"]["stage"] == 3
    assert options["steps_per_print"] == 9


def test_file_may_repeat_the_recipe(with_file):
    given = {"train_batch_size": 48, "train_micro_batch_size_per_gpu": 6, "gradient_clipping": 2.5}
    assert build(with_file(given)) == build(ENGINE)


@pytest.mark.parametrize(
    ("given", "key", "facts"),
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
        ({"steps_per_print": True}, "steps_per_print", ["integer"]),
        ({"zero_optimization": {"stage3_max_reuse_distance": -1}}, f"{ZERO}.stage3_max_reuse_distance", ["at least 0"]),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, f"{ZERO}.reduce_bucket_size", ["0", "at least 1"]),
        ({"steps_per_print": 0}, "steps_per_print", ["0", "at least 1"]),
        ({"flops_profiler": {"module_depth": -2}}, "flops_profiler.module_depth", ["-2", "at least -1"]),
    ],
)
def test_contradicting_unknown_or_invalid_option_is_refused(with_file, given, key, facts):
    engine = with_file(given)
    (fault,) = faults(engine)
    assert (fault.where, fault.key) == (engine.deepspeed_config, key)
    assert "\n" not in str(fault)
    assert all(fact in fault.problem for fact in facts)


def test_all_faults_are_reported_at_once(with_file):
    assert {fault.key for fault in faults(with_file({"optimizer": {}, "train_batch_size": 1, "hello": 2}))} == {
        "optimizer",
        "train_batch_size",
        "hello",
    }


@pytest.mark.parametrize(
    ("text", "fact"),
    [("{", "JSON"), ("[]", "JSON object"), ('{"steps_per_print": 1, "steps_per_print": 2}', "'steps_per_print'")],
)
def test_file_that_is_not_a_json_object_is_refused(with_file, text, fact):
    (fault,) = faults(with_file(text))
    assert fault.key == "engine.deepspeed_config"
    assert fact in fault.problem


def test_missing_file_is_named(tmp_path):
    (fault,) = faults(replace(ENGINE, deepspeed_config=str(tmp_path / "none.json")))
    assert fault.key == "engine.deepspeed_config"
    assert "none.json" in fault.problem and "No such file" in fault.problem


def test_no_option_is_both_free_and_refused():
    assert not FREE.keys() & REFUSED.keys()
