import pytest
import torch
from torch import nn

from hsadml_dist.errors import ConfigError
from hsadml_dist.models.network import EmbeddingNet, build_model, rank_dependent_layers


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_an_image_becomes_an_embedding():
    model = build_model("resnet_gn_tiny", embedding_dim=8, image_size=32)
    assert isinstance(model, EmbeddingNet)
    assert model(torch.zeros(3, 1, 32, 32)).shape == (3, 8)
    assert model(torch.zeros(0, 1, 32, 32)).shape == (0, 8)


def test_embeddings_are_not_normalised():
    model = build_model("resnet_gn_tiny", embedding_dim=8, image_size=32)
    norms = model(torch.randn(4, 1, 32, 32)).norm(dim=1)
    assert not torch.allclose(norms, torch.ones(4), atol=1e-3)


def test_weights_follow_the_seed_and_nothing_else():
    torch.manual_seed(1)
    one = build_model("resnet_gn_tiny", embedding_dim=8, seed=5)
    torch.manual_seed(2)
    assert torch.equal(weights(one), weights(build_model("resnet_gn_tiny", embedding_dim=8, seed=5)))
    assert not torch.equal(weights(one), weights(build_model("resnet_gn_tiny", embedding_dim=8, seed=6)))


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build_model("resnet_gn_tiny", embedding_dim=8, seed=5)
    assert torch.equal(torch.rand(2), expected)


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.name: 'resnet_gn_tyni' is unknown \(did you mean 'resnet_gn_tiny'"):
        build_model("resnet_gn_tyni", embedding_dim=8)


def test_dropout_is_there_only_if_asked_for():
    plain, dropping = (build_model("resnet_gn_tiny", embedding_dim=8, dropout=p) for p in (0.0, 0.5))
    assert rank_dependent_layers(plain) == []
    assert rank_dependent_layers(dropping) == ["dropout"]
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(plain(x), plain(x))
    assert not torch.equal(dropping(x), dropping(x))
    assert torch.equal(dropping.eval()(x), plain(x))


def test_batch_norms_are_named():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.SyncBatchNorm(2), nn.GroupNorm(1, 2)))
    assert rank_dependent_layers(net) == ["1"], "one that is synchronised sees the whole batch"
