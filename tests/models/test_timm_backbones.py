"""What needs timm itself is skipped where timm cannot be imported."""

import copy
import sys
from types import ModuleType

import pytest
import torch

from hsadml_dist.errors import ConfigError
from hsadml_dist.models.activations import checkpoint_activations
from hsadml_dist.models.layer_depth import layer_depths
from hsadml_dist.models.network import build_model, rank_dependent_layers
from hsadml_dist.models.pretrained import load_pretrained


def build(name, size=64, **settings):
    return build_model(f"timm/{name}", embedding_dim=4, image_size=size, **settings)


@pytest.fixture
def timm():
    try:
        import timm
    except (ImportError, RuntimeError):
        pytest.skip("timm cannot be imported here")
    return timm


def refusal(*arguments, **settings):
    with pytest.raises(ConfigError) as fault:
        build(*arguments, **settings)
    assert str(fault.value).count("\n") == 0
    return str(fault.value)


def test_missing_timm_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "'timm/resnet18' requires timm" in refusal("resnet18")
    assert 'pip install "hsadml-dist[timm]"' in refusal("resnet18")


def test_timm_import_error_gives_the_reason(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    assert refusal("resnet18").endswith("timm cannot be imported: operator torchvision::nms does not exist")


def test_volumes_are_rejected_before_timm_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    assert "supports images only" in refusal("resnet18", spatial_dims=3)


def test_unknown_timm_name_is_rejected_with_suggestion(timm):
    assert f"timm {timm.__version__} has no 'resnet18x' (did you mean 'resnet18'?)" in refusal("resnet18x")
    assert "has no 'hf-hub:a/b'" in refusal("hf-hub:a/b"), "nothing is fetched from anywhere"


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100"])
def test_timm_networks_become_backbones(timm, name):
    model = build(name).train()
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 4)
    model(torch.randn(2, 1, 64, 64)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    depths = layer_depths(model)
    assert depths["neck.weight"] == max(depths.values()) > 8


def test_unsupported_image_size_is_rejected(timm):
    assert "timm's convnext_atto does not accept images of 8 pixels: " in refusal("convnext_atto", size=8)


def test_published_weights_load_with_other_grid_channels_and_classes(timm):
    torch.manual_seed(1)
    theirs, model = timm.create_model("vit_tiny_patch16_224"), build("vit_tiny_patch16_224")
    report = load_pretrained(model, theirs.state_dict())
    assert report.dropped == ("backbone.head.weight", "backbone.head.bias")
    assert report.adapted == (
        "backbone.patch_embed.proj.weight summed over its 3 colour channels",
        "backbone.pos_embed interpolated from (1, 197, 192) to (1, 17, 192)",
    )
    theirs = timm.create_model("resnet18").eval()
    model = build("resnet18").eval()
    load_pretrained(model, theirs.state_dict())
    theirs.reset_classifier(0)
    image = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(model.backbone(image), theirs(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_norm_act_layers_keep_their_activation_as_group_norm(timm):
    model = build("efficientnet_b0", batch_norm="group").eval()
    assert "49 BatchNorm layers became GroupNorm" in model.changes[0]
    assert rank_dependent_layers(model) == []
    assert model.backbone.bn1(torch.randn(2, 32, 8, 8)).min() > -0.3, "SiLU's least value"


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_activation_checkpointing_is_bit_identical(timm, name):
    plain, image = build(name).train(), torch.randn(2, 1, 64, 64)
    other = copy.deepcopy(plain)
    assert checkpoint_activations(other) > 8
    for model in (plain, other):
        model(image).square().sum().backward()
    pairs = zip(plain.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one.grad, two.grad) for one, two in pairs)
    assert all(torch.equal(one, two) for one, two in zip(plain.buffers(), other.buffers(), strict=True))
