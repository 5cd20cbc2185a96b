"""What a backbone needs, found without giving its weights any memory."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hsadml_dist.backbones import BackboneFacts
from hsadml_dist.models.network import build_backbone


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
