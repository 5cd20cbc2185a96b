"""MONAI's classification nets with their last linear layer taken off.

MONAI is imported when a net is built: it takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

from torch import nn


def densenet121(in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return DenseNet121. Source: Huang et al., CVPR 2017."""
    from monai.networks.nets import DenseNet121

    return _without_last(DenseNet121(spatial_dims, in_channels, out_channels=2), "class_layers.out")


def efficientnet_b0(in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return EfficientNet-B0. Source: Tan and Le, ICML 2019."""
    from monai.networks.nets import EfficientNetBN

    net = EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=spatial_dims, in_channels=in_channels)
    return _without_last(net, "_fc")


def resnet18(in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return ResNet-18. Source: He et al., CVPR 2016."""
    from monai.networks.nets import resnet18 as build

    return _without_last(build(spatial_dims=spatial_dims, n_input_channels=in_channels, num_classes=2), "fc")


def seresnet50(in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return SE-ResNet-50. Source: Hu et al., CVPR 2018."""
    from monai.networks.nets import SEResNet50

    return _without_last(SEResNet50(spatial_dims=spatial_dims, in_channels=in_channels), "last_linear")


def _without_last(net: nn.Module, name: str) -> tuple[nn.Module, int]:
    """Replace the named linear layer by the identity; return the net and the layer's input width."""
    parent_name, _, leaf = name.rpartition(".")
    parent = net.get_submodule(parent_name)
    last = getattr(parent, leaf)
    setattr(parent, leaf, nn.Identity())
    return net, last.in_features
