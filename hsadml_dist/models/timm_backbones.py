"""Backbones of the timm library; timm is optional and imported when a network is built."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hsadml_dist.errors import ConfigError, Fault, did_you_mean

INSTALL = 'pip install "hsadml-dist[timm]" (".[timm]" in a clone)'


def build_timm(name: str, in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return an untrained timm network without its classifier, and the width of its features.

    Args:
        name: Name in timm, such as ``resnet18``.
        in_channels: Channels of an image.
        spatial_dims: Must be 2.
        image_size: Pixels per side; networks with a fixed image size are built for it.

    Raises:
        ConfigError: timm is not installed, has no such network, or the network does not accept such images.
    """
    if spatial_dims != 2:
        raise _fault("model.name", f"'timm/{name}' supports images only; use a MONAI backbone for volumes")
    timm = _import_timm(name)
    if not timm.is_model(name):
        raise _fault("model.name", f"timm {timm.__version__} has no {name!r}{did_you_mean(name, timm.list_models())}")
    published = timm.models.get_pretrained_cfg(name)
    sized = {"img_size": image_size} if published is not None and published.fixed_input_size else {}
    try:
        net = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **sized)
        return net, _width(net, in_channels, image_size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as fault:
        reason = str(fault).strip().partition("\n")[0] or "no reason given"
        raise _fault(
            "data.image_size", f"timm's {name} does not accept images of {image_size} pixels: {reason}"
        ) from fault


def _import_timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as fault:
        raise _fault("model.name", f"'timm/{name}' requires {fault.name}, which is not installed: {INSTALL}") from fault
    except (ImportError, RuntimeError) as fault:  # RuntimeError if torchvision was built for another torch
        raise _fault("model.name", f"'timm/{name}': timm cannot be imported: {str(fault).splitlines()[0]}") from fault


def _width(net: nn.Module, in_channels: int, image_size: int) -> int:
    """Return the width of the features; raise what the network raises if it does not accept the image."""
    net.eval()
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes only: fast, and statistics do not change
        features = net(torch.empty(1, in_channels, image_size, image_size))
    net.train()
    if features.ndim != 2:
        raise ValueError(f"its output has the shape {tuple(features.shape)} and is not one vector per image")
    return features.shape[1]


def _fault(key: str, problem: str) -> ConfigError:
    return ConfigError([Fault(where="recipe", key=key, problem=problem)])
