"""MONAI's classification nets with their last linear layer taken off.

MONAI is imported when a net is built: it takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

Built = tuple[nn.Module, int]


def densenet(kind: str, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return a densely connected net. Source: Huang et al., CVPR 2017."""
    from monai.networks import nets

    net = getattr(nets, kind)(spatial_dims, in_channels, out_channels=2)
    return _without_last(net, "class_layers.out")


def efficientnet(kind: str, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return an EfficientNet, with the dropout and the dropped blocks of its paper. Source: Tan and Le, ICML 2019."""
    from monai.networks.nets import EfficientNetBN

    net = EfficientNetBN(kind, pretrained=False, spatial_dims=spatial_dims, in_channels=in_channels)
    return _without_last(net, "_fc")


def resnet(kind: str, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return a residual net whose first convolution has stride 1, as MONAI builds it. Source: He et al., CVPR 2016."""
    from monai.networks import nets

    net = getattr(nets, kind)(spatial_dims=spatial_dims, n_input_channels=in_channels, num_classes=2)
    return _without_last(net, "fc")


def seresnet(kind: str, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return a residual net with squeeze and excitation. Source: Hu et al., CVPR 2018."""
    from monai.networks import nets

    return _without_last(getattr(nets, kind)(spatial_dims=spatial_dims, in_channels=in_channels), "last_linear")


def _without_last(net: nn.Module, name: str) -> Built:
    """Replace the named linear layer by the identity; return the net and the layer's input width."""
    parent_name, _, leaf = name.rpartition(".")
    parent = net.get_submodule(parent_name)
    last = getattr(parent, leaf)
    setattr(parent, leaf, nn.Identity())
    return net, last.in_features


CONVOLUTIONAL: dict[str, Callable[[int, int, int], Built]] = {
    **{f"monai_densenet{depth}": partial(densenet, f"DenseNet{depth}") for depth in (121, 169, 201, 264)},
    **{f"monai_efficientnet_b{size}": partial(efficientnet, f"efficientnet-b{size}") for size in range(8)},
    **{f"monai_resnet{depth}": partial(resnet, f"resnet{depth}") for depth in (18, 34, 50, 101)},
    **{f"monai_seresnet{depth}": partial(seresnet, f"SEResNet{depth}") for depth in (50, 101, 152)},
}
