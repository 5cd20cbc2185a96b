import pytest
import torch

from hsadml_dist.errors import ConfigError
from hsadml_dist.models.network import build_model, rank_dependent_layers


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_freeze_modules_and_single_weights():
    model = build_model(
        "vit_small_patches", embedding_dim=4, frozen=("backbone.positions", "backbone.encoder.layers.1")
    )
    names = {name for name, _ in model.named_parameters()}
    frozen = {name for name in names if name.startswith("backbone.encoder.layers.1.")} | {"backbone.positions"}
    assert trained(model) == names - frozen
    (line,) = model.changes
    assert line.startswith("frozen: backbone.positions, backbone.encoder.layers.1 (13 tensors, ")


def test_frozen_batch_norm_keeps_its_statistics_in_training():
    model = build_model("monai_resnet18", embedding_dim=4, image_size=32, frozen=("backbone.layer1", "backbone.bn1"))
    assert "5 BatchNorm layers in them keep their running statistics" in model.changes[0]
    model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 1, 32, 32))
    moved = {name.rpartition(".")[0] for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert {name for name in moved if name.startswith(("backbone.bn1", "backbone.layer1"))} == set()
    assert "backbone.layer2.0.bn1" in moved
    named = rank_dependent_layers(model)
    assert "backbone.layer1.0.bn1" not in named
    assert "backbone.layer2.0.bn1" in named
    assert not model.eval().backbone.layer2.training
    assert model.train().backbone.layer2[0].bn1.training


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ("backbone.stme",),
            r"model\.freeze: the network has no 'backbone\.stme' \(did you mean 'backbone\.stem'\?\)",
        ),
        (("backbone.zzzzzzzzzzzzzzzzzzzzzz",), r".*has no 'backbone\.z+'; it has backbone\.stages, backbone\.stem"),
        (("neck", "backbone"), r".*neck, backbone: nothing would be left to train"),
        (("",), r".*the network has no ''; it has backbone, dropout, neck"),
    ],
)
def test_freeze_rejects_unknown_parts_and_whole_network(names, text):
    with pytest.raises(ConfigError, match=text) as fault:
        build_model("resnet_gn_tiny", embedding_dim=4, frozen=names)
    assert str(fault.value).count("\n") == 0
