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
from hsadml_dist.models.network import InputSpec, build_backbone
from hsadml_dist.models.registry import BackboneFacts


def checkpoint_activations(network: nn.Module) -> int:
    """Make each block save only its input, and run again in the backward pass.

    Parameter names, modules and all results stay the same: random numbers repeat, and running statistics are updated
    once.

    Args:
        network: Changed in place; for its blocks see :mod:`hsadml_dist.models.layer_depth`.

    Returns:
        The number of blocks.
    """
    names = block_names(network)
    for name in names:
        block = network.get_submodule(name)
        # A bound method instead of a closure: a copy of the network gets methods bound to its own blocks.
        setattr(block, "forward", MethodType(_recomputed, block))  # noqa: B010  # mypy refuses the plain assignment
    return len(names)


def _recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Copy lists: timm's dense blocks pass a list of features that grows before the block runs again.
    args = tuple(list(value) if isinstance(value, list) else value for value in args)
    if torch.compiler.is_compiling():  # a compiled graph recomputes values only, not updates of statistics
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    def contexts() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
        return contextlib.nullcontext(), _freeze_statistics(block)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextlib.contextmanager
def _freeze_statistics(block: nn.Module) -> Iterator[None]:
    """Prevent batch norms from counting the same batch twice."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    norms = [m for m in norms if m.training]  # in evaluation mode they use their statistics
    before: list[tuple[Any, Any]] = [(layer.momentum, layer.num_batches_tracked) for layer in norms]
    try:
        # A momentum of 0 instead of no statistics, which would save other tensors than the first run of the block.
        for layer, (_, count) in zip(norms, before, strict=True):
            layer.momentum, layer.num_batches_tracked = 0.0, count.clone()
        yield
    finally:
        for layer, (momentum, count) in zip(norms, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count


def meta_backbone(name: str, spec: InputSpec) -> tuple[nn.Module, int]:
    """Return a backbone on the meta device, where tensors have shapes only, and the width of its features.

    Raises:
        ConfigError: Unknown backbone, or an image that it does not accept.
    """
    try:
        with torch.device("meta"):
            return build_backbone(name, spec)
    except RuntimeError:  # networks that read values while they are built, such as MONAI's SwinUNETR
        net, features = build_backbone(name, spec)
        return net.to("meta"), features


def count_trainable(network: nn.Module) -> int:
    """Return the number of trainable weights."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def activation_bytes(network: nn.Module, spec: InputSpec) -> int:
    """Return the bytes per image that autograd saves for the backward pass in fp32, counting each storage once.

    Weights, buffers, the image and temporary memory of a layer are excluded.

    Args:
        network: A network from :func:`meta_backbone`.
        spec: Shape of the images.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Fake CPU tensors, because on the meta device attention would save its full matrix.
        network = network.to_empty(device="cpu")
        return _saved_bytes(network, spec.zeros(torch.device("cpu"), "fp32"))


def _saved_bytes(network: nn.Module, image: torch.Tensor) -> int:
    def storage_id(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    excluded = {storage_id(tensor) for tensor in (*network.parameters(), *network.buffers(), image)}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if storage_id(tensor) not in excluded:
            saved[storage_id(tensor)] = tensor.untyped_storage()  # kept alive, so that no later storage reuses its id
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        network(image)
    return sum(storage.nbytes() for storage in saved.values())


def measure_backbone(name: str, image_size: int) -> BackboneFacts:
    """Return the facts of a backbone that is not in the table, for one image size and without volumes.

    Raises:
        ConfigError: Unknown backbone, or an image that it does not accept.
    """
    spec = InputSpec(image_size=image_size)
    net, features = meta_backbone(name, spec)
    return BackboneFacts(
        weights=count_trainable(net),
        weights_3d=0,
        features=features,
        activations=activation_bytes(net, spec),
        norm=", ".join(sorted({type(layer).__name__ for layer in net.modules() if "Norm" in type(layer).__name__})),
        source="the timm library",
    )
