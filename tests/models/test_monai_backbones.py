import subprocess
import sys

import pytest
import torch
from torch import nn

from hsadml_dist.models.batch_norm import convert_batch_norms
from hsadml_dist.models.network import BACKBONES, build_model, rank_dependent_layers


@pytest.mark.parametrize(("name", "features"), [("monai_resnet18", 512), ("monai_densenet121", 1024)])
def test_classifier_is_replaced_by_the_neck(name, features):
    model = build_model(name, embedding_dim=8, image_size=64)
    assert model.neck.in_features == features
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 8)
    assert [layer for layer in model.backbone.modules() if isinstance(layer, nn.Linear)] == []


def test_batch_norms_are_rank_dependent():
    assert "backbone.bn1" in rank_dependent_layers(build_model("monai_resnet18", embedding_dim=8, image_size=32))


def test_stochastic_depth_is_rank_dependent():
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


def test_resnet_accepts_volumes():
    model = build_model("monai_resnet18", embedding_dim=8, image_size=32, spatial_dims=3)
    assert convert_batch_norms(model, "keep") is None
    assert model(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 8)


def test_training_module_does_not_import_monai():
    code = "import sys, hsadml_dist.trainer; print('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_vit_features_are_the_mean_over_tokens():
    from monai.networks.nets import ViT

    torch.manual_seed(0)
    theirs = ViT(1, 32, 16, hidden_size=384, mlp_dim=1536, num_layers=12, num_heads=6, spatial_dims=2)
    torch.manual_seed(0)
    ours, width = BACKBONES["monai_vit_small_16"](1, 2, 32)
    assert width == 384
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(ours(image), theirs(image)[0].mean(dim=1), rtol=1e-5, atol=1e-5)


def test_swin_features_are_the_mean_over_the_last_stage():
    net, width = BACKBONES["monai_swinunetr_encoder"](1, 2, 64)
    image = torch.randn(2, 1, 64, 64)
    last = net.encoder(image, normalize=True)[-1]
    assert width == last.shape[1] == 768
    torch.testing.assert_close(net(image), last.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["monai_vit_small_16", "monai_swinunetr_encoder"])
def test_transformers_are_rank_independent(name):
    model = build_model(name, embedding_dim=8, image_size=32)
    assert rank_dependent_layers(model) == []
    assert type(model.backbone).__module__ == "hsadml_dist.models.monai_backbones"
