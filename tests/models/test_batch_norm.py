import pytest
import torch
from torch import nn

from hsadml_dist.errors import ConfigError
from hsadml_dist.models.batch_norm import batch_norms, check_sync_batch_norm, convert_batch_norms
from hsadml_dist.models.network import build_model, rank_dependent_layers

CPU = torch.device("cpu")


def with_statistics():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 48, 3), nn.BatchNorm2d(48, eps=1e-3, momentum=0.2), nn.Conv2d(48, 20, 3))
    net.append(nn.Sequential(nn.BatchNorm2d(20), nn.BatchNorm2d(20, affine=False)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.rand_like(parameter))
    return net


def test_group_keeps_affine_weights_and_normalises_per_image():
    net = with_statistics()
    weight, bias = net[1].weight.detach().clone(), net[1].bias.detach().clone()
    line = convert_batch_norms(net, "group")
    assert line.startswith("3 BatchNorm layers became GroupNorm, groups of 16 channels, 2 of them of 10")
    x = torch.randn(4, 48, 6, 6, dtype=torch.float64)
    parts = x.view(4, 3, -1)
    mean, var = parts.mean(dim=2, keepdim=True), parts.var(dim=2, keepdim=True, correction=0)
    slow = ((parts - mean) / (var + 1e-3).sqrt()).view_as(x) * weight[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(net[1].double()(x), slow, rtol=1e-9, atol=1e-9)
    assert not batch_norms(net)
    assert net[3][1].weight is None
    assert list(net.state_dict()) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
        "3.0.weight",
        "3.0.bias",
    ]


def test_group_makes_network_independent_of_ranks():
    model = build_model("monai_resnet18", embedding_dim=4, image_size=32, batch_norm="group").double()
    assert rank_dependent_layers(model) == []
    (line,) = model.changes
    assert line.startswith("20 BatchNorm layers became GroupNorm, groups of 16 channels")
    image = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    alone = torch.cat([model(one[None]) for one in image])
    torch.testing.assert_close(model(image), alone, rtol=1e-9, atol=1e-9)


def test_sync_keeps_names_weights_and_statistics():
    net = with_statistics()
    net(torch.randn(2, 1, 8, 8))
    before, x = net.state_dict(), torch.randn(2, 1, 8, 8)
    expected = net.eval()(x)
    assert convert_batch_norms(net, "sync").startswith("3 BatchNorm layers became SyncBatchNorm")
    assert isinstance(net[1], nn.SyncBatchNorm)
    assert (net[1].eps, net[1].momentum) == (1e-3, 0.2)
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(x), expected), "evaluation needs no other rank"
    assert rank_dependent_layers(net) == []


def test_check_sync_batch_norm_rejects_several_cpu_ranks():
    net = with_statistics()
    check_sync_batch_norm(net, CPU, ranks=2)
    convert_batch_norms(net, "sync")
    check_sync_batch_norm(net, CPU, ranks=1)
    check_sync_batch_norm(net, torch.device("cuda"), ranks=2)
    with pytest.raises(ConfigError, match=r"model\.batch_norm: 'sync' .*GPUs.*'group' or 'keep'") as fault:
        check_sync_batch_norm(net, CPU, ranks=2)
    assert str(fault.value).count("\n") == 0


def test_network_without_batch_norm_reports_no_change():
    model = build_model("resnet_gn_tiny", embedding_dim=4, batch_norm="group")
    (line,) = model.changes
    assert "group" in line and "no BatchNorm layer" in line
    assert build_model("resnet_gn_tiny", embedding_dim=4).changes == ()


class ActingNorm(nn.BatchNorm2d):
    """A batch norm that includes dropout and activation, as in timm."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize("kind", ["group", "sync"])
def test_convert_keeps_activation_inside_the_norm(kind):
    net = nn.Sequential(ActingNorm(16))
    names = set(net.state_dict())
    convert_batch_norms(net, kind)
    assert set(net.state_dict()) <= names
    assert net(torch.randn(4, 16, 5, 5)).min() == 0
