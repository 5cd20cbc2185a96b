"""The project's count of operations against torch's, which watches the operations instead of the layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hsadml_dist.models.activations import meta_backbone
from hsadml_dist.models.flops import forward_flops
from hsadml_dist.models.network import InputSpec

SIZE = 224
CUBE = 96
ONE_OF_EACH_FAMILY = (
    *("resnet_gn_tiny", "vit_small_patches", "monai_densenet121", "monai_efficientnet_b0", "monai_resnet50"),
    *("monai_seresnet50", "monai_vit_base_16", "monai_swinunetr_encoder"),
)


def torch_flops(network: nn.Module, image: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_count_equals_torchs_for_images(name: str) -> None:
    network, _ = meta_backbone(name, InputSpec(image_size=SIZE))
    image = torch.zeros(2, 1, SIZE, SIZE, device="meta")
    network.train()
    assert forward_flops(network, image) == torch_flops(network, image) > 0


@pytest.mark.parametrize("name", ["resnet_gn_tiny", "monai_resnet18", "monai_vit_small_16"])
def test_count_equals_torchs_for_volumes(name: str) -> None:
    network, _ = meta_backbone(name, InputSpec(image_size=CUBE, spatial_dims=3))
    volume = torch.zeros(1, 1, CUBE, CUBE, CUBE, device="meta")
    assert forward_flops(network, volume) == torch_flops(network, volume) > 0


def test_operations_of_a_layer_are_those_of_its_definition() -> None:
    image = torch.zeros(3, 4, 8, 8)
    assert forward_flops(nn.Conv2d(4, 6, 3, padding=1, groups=2), image) == 3 * 6 * 8 * 8 * 2 * (4 // 2) * 9
    assert forward_flops(nn.Linear(8, 5), image) == 3 * 4 * 8 * 5 * 2 * 8


def test_network_keeps_no_hook() -> None:
    layer = nn.Linear(2, 2)
    forward_flops(layer, torch.zeros(1, 2))
    assert not layer._forward_hooks
