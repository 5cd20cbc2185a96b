import pytest
import torch

from hsadml_dist.models.activations import meta_backbone
from hsadml_dist.models.network import BACKBONES, EmbeddingNet, InputSpec
from hsadml_dist.models.registry import BACKBONE_FACTS

QUICK = (
    "resnet_gn_tiny",
    "vit_small_patches",
    "monai_densenet121",
    "monai_efficientnet_b0",
    "monai_resnet18",
    "monai_resnet50",
    "monai_seresnet50",
    "monai_vit_small_16",
    "monai_vit_huge_14",
    "monai_swinunetr_encoder",
)
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in BACKBONE_FACTS]


def least(name):
    return max(8, BACKBONE_FACTS[name].least, BACKBONE_FACTS[name].multiple)


def test_builders_and_facts_have_the_same_names():
    assert list(BACKBONES) == list(BACKBONE_FACTS)


@pytest.mark.parametrize("name", EACH)
def test_smallest_image_gives_every_weight_a_gradient(name):
    size = least(name)
    net, features = meta_backbone(name, InputSpec(image_size=size))
    model = EmbeddingNet(net, features, 8, 0.0).to("meta")
    model(torch.empty(1, 1, size, size, device="meta")).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["resnet_gn_tiny", "vit_small_patches", "monai_vit_small_16"])
def test_gradients_of_backbones_are_not_zero(name):
    size = least(name)
    net, _ = BACKBONES[name](1, 2, 2 * size)
    net(torch.randn(4, 1, 2 * size, 2 * size)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@pytest.mark.parametrize(
    "name", ["vit_small_patches", "monai_resnet18", "monai_vit_small_16", "monai_swinunetr_encoder"]
)
def test_backbones_accept_volumes(name):
    size = least(name)
    net, features = meta_backbone(name, InputSpec(image_size=size, spatial_dims=3))
    assert net(torch.empty(2, 1, size, size, size, device="meta")).shape == (2, features)
