from dataclasses import replace

import pytest
import torch

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, ModelConfig, TrainConfig
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine import learner
from hsadml_dist.engine.ddp import DdpEngine
from hsadml_dist.models.network import build_model

RECIPE = Recipe(
    data=DataConfig(shards="none", image_size=16),
    model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
    train=TrainConfig(steps=4, global_batch=6),
)
EXAMPLE = torch.zeros(1, 1, 16, 16)


def network():
    return build_model("resnet_gn_tiny", embedding_dim=8, image_size=16).to(memory_format=torch.channels_last)


def test_build_engine_follows_the_recipe(monkeypatch):
    arguments = {}

    def engine(model, optimizer, comm, precision, options, build_copy, ema_decay):
        arguments.update(model=model, options=options, ema_decay=ema_decay, build_copy=build_copy)
        return "deepspeed"

    monkeypatch.setattr(learner, "DeepSpeedEngine", engine)
    recipe = replace(
        RECIPE, engine=EngineConfig(name="deepspeed", zero_stage=1), optim=replace(RECIPE.optim, ema_decay=0.5)
    )
    assert learner.build_engine(recipe, network(), SoloComm(), EXAMPLE, network) == "deepspeed"
    assert arguments["options"]["zero_optimization"]["stage"] == 1
    assert (arguments["ema_decay"], arguments["build_copy"]) == (0.5, network)
    assert all(p.is_contiguous() for p in arguments["model"].parameters()), "flat partitions require contiguous weights"
    assert isinstance(learner.build_engine(RECIPE, network(), SoloComm(), EXAMPLE, network), DdpEngine)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_layer_decay_gives_parameter_groups_their_own_rates(monkeypatch, decay):
    made = []
    monkeypatch.setattr(learner, "DdpEngine", lambda model, optimizer, *rest: made.append(optimizer))
    recipe = replace(RECIPE, optim=replace(RECIPE.optim, layer_decay=decay))
    learner.build_engine(recipe, network(), SoloComm(), EXAMPLE, network)
    scales = {group.get("lr_scale") for group in made[0].param_groups}
    assert scales == {None} if decay is None else max(scales) == 1.0 and len(scales) > 1
