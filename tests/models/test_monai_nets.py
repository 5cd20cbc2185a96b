import subprocess
import sys

import pytest
import torch
from torch import nn

from hsadml_dist.models.network import build_model, rank_dependent_layers
from hsadml_dist.models.norms import convert_batch_norms


@pytest.mark.parametrize(("name", "features"), [("monai_resnet18", 512), ("monai_densenet121", 1024)])
def test_the_classifier_is_replaced_by_the_neck(name, features):
    model = build_model(name, embedding_dim=8, image_size=64)
    assert model.neck.in_features == features
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 8)
    assert [layer for layer in model.backbone.modules() if isinstance(layer, nn.Linear)] == []


def test_their_batch_norms_are_named_as_dependent_on_the_ranks():
    assert "backbone.bn1" in rank_dependent_layers(build_model("monai_resnet18", embedding_dim=8, image_size=32))


def test_blocks_that_are_dropped_at_random_are_named_as_dependent_on_the_ranks():
    model = build_model("monai_efficientnet_b0", embedding_dim=8, image_size=64, batch_norm="group")
    image = torch.randn(2, 1, 64, 64)
    assert "backbone._blocks.1.2" in rank_dependent_layers(model)
    assert "backbone._blocks.1.1" not in rank_dependent_layers(model), "a block of stride 2 is never dropped"
    assert not torch.equal(model(image), model(image))
    for layer in model.modules():
        if hasattr(layer, "drop_connect_rate"):
            layer.drop_connect_rate = 0.0
    model.backbone._dropout.p = 0.0
    assert rank_dependent_layers(model) == []
    assert torch.equal(model(image), model(image))


def test_a_volume_is_taken():
    model = build_model("monai_resnet18", embedding_dim=8, image_size=32, spatial_dims=3)
    assert convert_batch_norms(model, "keep") is None
    assert model(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 8)


def test_monai_is_not_imported_before_it_is_needed():
    code = "import sys, hsadml_dist.train; print('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
