"""Measure the activation memory of a backbone, and recompute activations in the backward pass.

Source of activation checkpointing: Chen et al. 2016, arXiv 1604.06174.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from hsadml_dist.models.layer_depth import block_names
from hsadml_dist.models.network import build_backbone
from hsadml_dist.models.registry import BackboneFacts


def checkpoint_activations(network: nn.Module) -> int:
    """Let each block keep its input only, and run again for the backward pass.

    Names of weights, places of modules and all numbers stay as they are: random draws repeat, running statistics move
    once.

    Args:
        network: Changed in place; its blocks are those of :mod:`hsadml_dist.models.layer_depth`.

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


def meta_backbone(name: str, *, image_size: int, spatial_dims: int = 2) -> tuple[nn.Module, int]:
    """Return a backbone for images of one channel on the meta device, where tensors have shapes only, and its width.

    Raises:
        ConfigError: Unknown backbone, or an image that it cannot take.
    """
    try:
        with torch.device("meta"):
            return build_backbone(name, 1, spatial_dims, image_size)
    except RuntimeError:  # a net that reads numbers while it is built, as MONAI's SwinUNETR does
        net, features = build_backbone(name, 1, spatial_dims, image_size)
        return net.to("meta"), features


def count_trainable(network: nn.Module) -> int:
    """Return how many numbers are trained."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def activation_bytes(network: nn.Module, image_size: int, spatial_dims: int = 2) -> int:
    """Return the bytes that the backward pass needs for each image: all that autograd keeps, each storage once, fp32.

    Weights, buffers and the image are left out, and so is what exists only while a layer computes.

    Args:
        network: A net from :func:`hollow`.
        image_size: Pixels a side.
        spatial_dims: 2 or 3.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        # On the meta device itself, attention would be counted as if its matrix were kept.
        network = network.to_empty(device="cpu")
        image = torch.empty(1, 1, *[image_size] * spatial_dims)
        return _kept(network, image)


def _kept(network: nn.Module, image: torch.Tensor) -> int:
    own = {_place(tensor) for tensor in (*network.parameters(), *network.buffers(), image)}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor.untyped_storage()  # held, so that no later storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image)
    return sum(storage.nbytes() for storage in kept.values())


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def measure_backbone(name: str, image_size: int) -> BackboneFacts:
    """Return the facts of a net that the table does not hold, at one image size; nothing of volumes.

    Raises:
        ConfigError: Unknown backbone, or an image that it cannot take.
    """
    net, features = meta_backbone(name, image_size=image_size)
    return BackboneFacts(
        weights=count_trainable(net),
        weights_3d=0,
        features=features,
        activations=activation_bytes(net, image_size),
        norm=", ".join(sorted({type(layer).__name__ for layer in net.modules() if "Norm" in type(layer).__name__})),
        source="the timm library",
    )
