import pytest

from hsadml_dist.config.engine import EngineConfig


@pytest.mark.parametrize("key", ["static_graph", "compile"])
def test_what_only_ddp_knows_is_refused_elsewhere(key):
    assert list(EngineConfig(**{key: True}).conflicts()) == []
    faults = list(EngineConfig(name="deepspeed", **{key: True}).conflicts())
    assert faults == [(f"engine.{key}", "true is for engine.name 'ddp', which is 'deepspeed'")]
