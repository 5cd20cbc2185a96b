import pytest
import torch

from hsadml_dist.models.network import build_model, rank_dependent_layers
from hsadml_dist.models.registry import BACKBONES


def test_the_features_are_the_mean_over_the_transformers_tokens():
    from monai.networks.nets import ViT

    torch.manual_seed(0)
    theirs = ViT(1, 32, 16, hidden_size=384, mlp_dim=1536, num_layers=12, num_heads=6, spatial_dims=2)
    torch.manual_seed(0)
    ours, width = BACKBONES["monai_vit_small_16"](1, 2, 32)
    assert width == 384
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(ours(image), theirs(image)[0].mean(dim=1), rtol=1e-5, atol=1e-5)


def test_the_features_are_the_mean_over_what_the_decoder_of_swinunetr_sees_last():
    net, width = BACKBONES["monai_swinunetr_encoder"](1, 2, 64)
    image = torch.randn(2, 1, 64, 64)
    last = net.encoder(image, normalize=True)[-1]
    assert width == last.shape[1] == 768
    torch.testing.assert_close(net(image), last.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["monai_vit_small_16", "monai_swinunetr_encoder"])
def test_they_are_the_same_function_on_any_number_of_ranks(name):
    model = build_model(name, embedding_dim=8, image_size=32)
    assert rank_dependent_layers(model) == []
    assert type(model.backbone).__module__ == "hsadml_dist.models.monai_tokens"
