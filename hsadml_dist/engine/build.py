"""The engine that a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hsadml_dist.comm import Comm
from hsadml_dist.config import Recipe
from hsadml_dist.config.deepspeed import build_deepspeed_options
from hsadml_dist.engine.ddp import DdpEngine, DdpOptions
from hsadml_dist.engine.deepspeed import DeepSpeedEngine
from hsadml_dist.engine.protocol import Engine
from hsadml_dist.models.depth import layer_depths
from hsadml_dist.optim import build_optimizer, layer_scales


def build_engine(
    recipe: Recipe, model: nn.Module, comm: Comm, example: torch.Tensor, bare: Callable[[], nn.Module]
) -> Engine:
    """Put the network into the recipe's engine, with the recipe's optimiser.

    Args:
        recipe: All settings.
        model: The network, on its device and in its dtype.
        comm: The ranks.
        example: An input (1, C, H, W) of zeros.
        bare: Builds the same network anew; its weights do not matter.

    Raises:
        ConfigError: The engine is not installed, or its own settings do not fit the recipe.
    """
    settings = recipe.engine
    if settings.name == "deepspeed":
        # Flat partitions know no other layout; images keep theirs, and the convolutions take it from them.
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's stubs
    scales = layer_scales(model, layer_depths(model), recipe.optim.layer_decay)
    optimizer = build_optimizer(model.parameters(), recipe.optim, decay=True, lr_scales=scales)
    if settings.name == "deepspeed":
        own = build_deepspeed_options(recipe, comm.topology.world_size)
        return DeepSpeedEngine(model, optimizer, comm, settings.precision, own, bare, recipe.optim.ema_decay)
    options = DdpOptions(
        static_graph=settings.static_graph, compiled=settings.compile, ema_decay=recipe.optim.ema_decay
    )
    return DdpEngine(model, optimizer, comm, settings.precision, settings.clip_norm, example, options)
