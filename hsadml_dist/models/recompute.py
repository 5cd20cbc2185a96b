"""Activations computed again in the backward pass instead of kept: less memory for about a third more computing.

Source: Chen et al. 2016, arXiv 1604.06174.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hsadml_dist.models.depth import block_names


def checkpoint_activations(network: nn.Module) -> int:
    """Let each block keep its input only, and run again for the backward pass.

    Names of weights, places of modules and all numbers stay as they are: random draws repeat, running statistics move
    once.

    Args:
        network: Changed in place; its blocks are those of :mod:`hsadml_dist.models.depth`.

    Returns:
        The number of blocks.
    """
    names = block_names(network)
    for name in names:
        block = network.get_submodule(name)
        # A method bound to the block, not a closure over it: a copy of the network gets one bound to its own block.
        setattr(block, "forward", MethodType(_recomputed, block))  # noqa: B010  # mypy refuses the plain assignment
    return len(names)


def _recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # A list of earlier features, as timm's dense blocks hand over, has grown when the block runs again.
    args = tuple(list(value) if isinstance(value, list) else value for value in args)
    if torch.compiler.is_compiling():  # a compiler repeats values, never what is done to statistics
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep batch norms from counting the same batch twice."""
    moving = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    moving = [m for m in moving if m.training]  # others normalise by these very statistics
    before: list[tuple[Any, Any]] = [(layer.momentum, layer.num_batches_tracked) for layer in moving]
    try:
        # Told to take nothing in; without statistics they would keep other tensors than before.
        for layer, (_, count) in zip(moving, before, strict=True):
            layer.momentum, layer.num_batches_tracked = 0.0, count.clone()
        yield
    finally:
        for layer, (momentum, count) in zip(moving, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count
