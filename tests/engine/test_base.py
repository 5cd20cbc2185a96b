import torch
from torch import nn

from hsadml_dist.engine.base import BufferSnapshot, forward_embeddings, preserve_buffers


def test_forward_embeddings_uses_autocast_only_for_bf16():
    net, image = nn.Linear(4, 2), torch.randn(3, 4)
    assert forward_embeddings(net, image, "bf16").dtype == torch.bfloat16
    assert forward_embeddings(net, image, "fp32").dtype == torch.float32
    assert forward_embeddings(net.double(), image.double(), "fp64").dtype == torch.float64


def test_buffer_snapshot_restores_repeatedly():
    net = nn.BatchNorm1d(3)
    buffers = BufferSnapshot(net)
    for _ in range(2):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        buffers.save()
        net(torch.randn(5, 3))
        buffers.restore()
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        net(torch.randn(5, 3))
    BufferSnapshot(nn.Identity()).restore()


def test_preserve_buffers_undoes_changes_of_a_forward_pass():
    net = nn.BatchNorm1d(3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with preserve_buffers(net):
        net(torch.randn(5, 3))
        assert not torch.equal(net.running_mean, before["running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
