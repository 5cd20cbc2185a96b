"""Optimizers, learning rate schedule, gradient clipping, and optimizer moments by parameter name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from hsadml_dist.config.recipe import OptimConfig

NO_DECAY_BELOW = 2
"""Tensors with fewer dimensions (biases, norms) have no weight decay."""


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Return the learning rate at ``step`` (from 1) of ``total`` steps."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(1, total - config.warmup_steps)
    done = (step - config.warmup_steps) / span
    low = config.lr * config.lr_end
    return low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimConfig,
    *,
    decay: bool,
    lr_scales: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer.

    Args:
        parameters: Parameters to train; frozen ones are ignored.
        config: Settings of the optimizer.
        decay: True if matrices and kernels have weight decay; False for the centres.
        lr_scales: Factor on the learning rate of each parameter, see :func:`layer_scales`; None means 1.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if lr_scales is None:
        groups = _groups(trained, config, decay)
    else:
        groups = []
        for scale in sorted({lr_scales[p] for p in trained}):
            same_scale = [p for p in trained if lr_scales[p] == scale]
            groups += [group | {"lr_scale": scale} for group in _groups(same_scale, config, decay)]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    # Fused: one pass over each tensor, a third to a half of the time of the default on a CPU.
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def _groups(trained: list[nn.Parameter], config: OptimConfig, decay: bool) -> list[dict[str, Any]]:
    weights = [p for p in trained if decay and p.ndim >= NO_DECAY_BELOW]
    others = [p for p in trained if not decay or p.ndim < NO_DECAY_BELOW]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def layer_scales(
    model: nn.Module, depths: Mapping[str, int], layer_decay: float | None
) -> dict[nn.Parameter, float] | None:
    """Return the factor on the learning rate of each parameter, ``layer_decay ** (deepest - depth)``.

    The first layers change least, because pretrained ones suit most tasks. Source: Clark et al. (ELECTRA), ICLR 2020;
    Bao et al. (BEiT), ICLR 2022.

    Args:
        model: The network.
        depths: Depth of each parameter by name, 0 for the first layer.
        layer_decay: Factor per depth; None returns None.
    """
    if layer_decay is None:
        return None
    deepest = max(depths.values())
    return {parameter: layer_decay ** (deepest - depths[name]) for name, parameter in model.named_parameters()}


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups, multiplied by the factor of the group if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def gradient_norm(module: nn.Module) -> torch.Tensor:
    """Return the norm of all gradients of the module, a scalar; finite only if all squares are finite."""
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def clip_gradients(module: nn.Module, limit: float | None, norm: torch.Tensor) -> None:
    """Scale the gradients of the module down to norm ``limit``.

    Args:
        module: The module.
        limit: Largest norm; None means no clipping.
        norm: Norm of all gradients, including those on other ranks.
    """
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)


def nonfinite_gradient(module: nn.Module) -> str | None:
    """Return the name of the first parameter of the module whose gradient is not finite, or None."""
    named = ((name, p.grad) for name, p in module.named_parameters())
    return next((name for name, grad in named if grad is not None and not grad.isfinite().all()), None)


def moments(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimizer state by name, ``<parameter>:<moment>``; empty before the first step."""
    return {
        f"{name}:{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_moments(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load the result of :func:`moments`."""
    for name, parameter in module.named_parameters():
        keys = [full for full in tensors if full.rpartition(":")[0] == name]
        state = {full.rpartition(":")[2]: _like_parameter(tensors[full], parameter) for full in keys}
        if state:
            optimizer.state[parameter] = state


def _like_parameter(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    if value.shape != parameter.shape:  # the step count; fused optimizers need it on the device of the parameter
        return value.to(parameter.device, copy=True)
    # With the memory layout of the parameter, so that sums over it round as before.
    return torch.empty_like(parameter, dtype=value.dtype, memory_format=torch.preserve_format).copy_(value)
