from dataclasses import replace

import pytest
import torch

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, ModelConfig, TrainConfig
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine import learner as build
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


def test_the_recipe_chooses_the_engine(monkeypatch):
    asked = {}

    def engine(model, optimizer, comm, precision, settings, bare, ema_decay):
        asked.update(model=model, settings=settings, ema_decay=ema_decay, bare=bare)
        return "deepspeed"

    monkeypatch.setattr(build, "DeepSpeedEngine", engine)
    recipe = replace(
        RECIPE, engine=EngineConfig(name="deepspeed", zero_stage=1), optim=replace(RECIPE.optim, ema_decay=0.5)
    )
    assert build.build_engine(recipe, network(), SoloComm(), EXAMPLE, network) == "deepspeed"
    assert asked["settings"]["zero_optimization"]["stage"] == 1
    assert (asked["ema_decay"], asked["bare"]) == (0.5, network)
    assert all(p.is_contiguous() for p in asked["model"].parameters()), "flat partitions know no other layout"
    assert isinstance(build.build_engine(RECIPE, network(), SoloComm(), EXAMPLE, network), DdpEngine)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_layers_learn_at_rates_of_their_own_where_the_recipe_says_so(monkeypatch, decay):
    made = []
    monkeypatch.setattr(build, "DdpEngine", lambda model, optimizer, *rest: made.append(optimizer))
    recipe = replace(RECIPE, optim=replace(RECIPE.optim, layer_decay=decay))
    build.build_engine(recipe, network(), SoloComm(), EXAMPLE, network)
    scales = {group.get("lr_scale") for group in made[0].param_groups}
    assert scales == {None} if decay is None else max(scales) == 1.0 and len(scales) > 1
