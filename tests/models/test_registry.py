import pytest
import torch

from hsadml_dist.models import BACKBONES


def test_names_that_recipes_may_use():
    assert set(BACKBONES) == {
        "resnet_gn_small",
        "resnet_gn_tiny",
        "vit_small_patches",
        "monai_densenet121",
        "monai_efficientnet_b0",
        "monai_resnet18",
        "monai_seresnet50",
    }


@pytest.mark.parametrize("name", [name for name in BACKBONES if not name.startswith("monai_")])
def test_a_builder_tells_the_width_of_its_features(name):
    net, width = BACKBONES[name](1, 2, 32)
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, width)
