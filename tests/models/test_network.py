import pytest
import torch
from torch import nn

from hsadml_dist.errors import ConfigError
from hsadml_dist.models.network import EmbeddingNet, InputSpec, build_model, prepare_model, rank_dependent_layers


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_network_maps_images_to_embeddings():
    model = build_model("resnet_gn_tiny", embedding_dim=8, image_size=32)
    assert isinstance(model, EmbeddingNet)
    assert model(torch.zeros(3, 1, 32, 32)).shape == (3, 8)
    assert model(torch.zeros(0, 1, 32, 32)).shape == (0, 8)


def test_embeddings_are_not_normalised():
    model = build_model("resnet_gn_tiny", embedding_dim=8, image_size=32)
    norms = model(torch.randn(4, 1, 32, 32)).norm(dim=1)
    assert not torch.allclose(norms, torch.ones(4), atol=1e-3)


def test_weights_depend_only_on_the_seed():
    torch.manual_seed(1)
    one = build_model("resnet_gn_tiny", embedding_dim=8, seed=5)
    torch.manual_seed(2)
    assert torch.equal(weights(one), weights(build_model("resnet_gn_tiny", embedding_dim=8, seed=5)))
    assert not torch.equal(weights(one), weights(build_model("resnet_gn_tiny", embedding_dim=8, seed=6)))


def test_build_model_keeps_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build_model("resnet_gn_tiny", embedding_dim=8, seed=5)
    assert torch.equal(torch.rand(2), expected)


def test_build_model_rejects_unknown_name_with_suggestion():
    with pytest.raises(ConfigError, match=r"model\.name: 'resnet_gn_tyni' is unknown \(did you mean 'resnet_gn_tiny'"):
        build_model("resnet_gn_tyni", embedding_dim=8)


def test_dropout_layer_exists_only_if_requested():
    plain, dropping = (build_model("resnet_gn_tiny", embedding_dim=8, dropout=p) for p in (0.0, 0.5))
    assert rank_dependent_layers(plain) == []
    assert rank_dependent_layers(dropping) == ["dropout"]
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(plain(x), plain(x))
    assert not torch.equal(dropping(x), dropping(x))
    assert torch.equal(dropping.eval()(x), plain(x))


def test_rank_dependent_layers_lists_batch_norms():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.SyncBatchNorm(2), nn.GroupNorm(1, 2)))
    assert rank_dependent_layers(net) == ["1"], "one that is synchronised sees the whole batch"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_prepare_model_sets_dtype_and_memory_format(precision):
    image_net, volume_net = (
        prepare_model(EmbeddingNet(conv(4, 3, 3), 3, 2, spec=spec), torch.device("cpu"), precision)
        for conv, spec in ((nn.Conv2d, InputSpec()), (nn.Conv3d, InputSpec(spatial_dims=3)))
    )
    assert image_net.backbone.weight.dtype == {"fp64": torch.float64}.get(precision, torch.float32)
    assert image_net.backbone.weight.is_contiguous(memory_format=torch.channels_last)
    assert volume_net.backbone.weight.is_contiguous()


def test_input_spec_gives_an_example_batch():
    assert InputSpec(image_size=5).zeros(torch.device("cpu"), "fp64").shape == (1, 1, 5, 5)
    volume = InputSpec(image_size=5, in_channels=2, spatial_dims=3).zeros(torch.device("cpu"), "bf16")
    assert (volume.shape, volume.dtype) == ((1, 2, 5, 5, 5), torch.float32)
