import copy

import pytest
import torch
from torch import nn

from hsadml_dist.models.activations import checkpoint_activations
from hsadml_dist.models.layer_depth import block_names
from hsadml_dist.models.network import build_model

NETS = {
    "resnet_gn_tiny": (32, {"dropout": 0.5}),
    "vit_small_patches": (32, {}),
    "monai_densenet121": (64, {}),
    "monai_efficientnet_b0": (64, {}),  # with blocks that are dropped at random
    "monai_resnet18": (32, {}),
    "monai_seresnet50": (64, {}),
    "monai_vit_small_16": (32, {}),
    "monai_swinunetr_encoder": (32, {}),
}


def step(model, image):
    torch.manual_seed(5)
    emb = model(image)
    emb.square().sum().backward()
    return emb.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NETS)
def test_checkpointing_is_bit_identical(name):
    size, settings = NETS[name]
    plain = build_model(name, embedding_dim=4, image_size=size, **settings).train()
    other = copy.deepcopy(plain)
    names = list(other.state_dict())
    assert checkpoint_activations(other) == len(block_names(plain)) > 1
    assert list(other.state_dict()) == names
    image = torch.randn(2, 1, size, size)
    (emb, grads), (emb_other, grads_other) = step(plain, image), step(other, image)
    assert torch.equal(emb, emb_other)
    assert all(torch.equal(grads[key], grads_other[key]) for key in grads)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), other.buffers(), strict=True))
    for one, two in zip(plain.modules(), other.modules(), strict=True):
        assert getattr(one, "momentum", None) == getattr(two, "momentum", None)


def test_checkpointed_blocks_run_twice_only_in_training():
    model, calls = build_model("resnet_gn_tiny", embedding_dim=4), []
    checkpoint_activations(model)
    model.backbone.stages[0].body.register_forward_hook(lambda *_: calls.append(1))
    model(torch.zeros(1, 1, 32, 32)).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        model(torch.zeros(1, 1, 32, 32))
    assert len(calls) == 3


def test_checkpointing_saves_fewer_activations():
    def kept(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(torch.zeros(1, 1, 64, 64))
        return sum(sizes)

    plain = build_model("vit_small_patches", embedding_dim=4, image_size=64)
    whole = kept(plain)
    checkpoint_activations(plain)
    assert kept(plain) < whole / 10


def test_copy_of_checkpointed_network_uses_its_own_weights():
    model = build_model("resnet_gn_tiny", embedding_dim=4)
    checkpoint_activations(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(other(image), torch.zeros(1, 4))
    assert not torch.equal(model(image), torch.zeros(1, 4))


class Growing(nn.Module):
    """Hands a list to its blocks and lets it grow, as some dense nets do."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(Join(), nn.Linear(2 * n, 2), nn.Sequential(nn.Linear(2, 2))) for n in (1, 2)
        )

    def forward(self, x):
        features = [x]
        for block in self.blocks:
            features.append(block(features))
        return features[-1]


class Join(nn.Module):
    def forward(self, features):
        return torch.cat(features, dim=1)


def test_checkpointed_block_sees_list_argument_as_in_first_run():
    plain, x = Growing(), torch.randn(3, 2)
    other = copy.deepcopy(plain)
    assert checkpoint_activations(other) == 2
    assert all(torch.equal(a, b) for a, b in zip(step(plain, x)[1].values(), step(other, x)[1].values(), strict=True))
