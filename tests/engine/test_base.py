import torch
from torch import nn

from hsadml_dist.engine.base import BufferSnapshot, forward_embeddings, preserve_buffers


def test_bf16_is_autocast_and_nothing_else_is():
    net, image = nn.Linear(4, 2), torch.randn(3, 4)
    assert forward_embeddings(net, image, "bf16").dtype == torch.bfloat16
    assert forward_embeddings(net, image, "fp32").dtype == torch.float32
    assert forward_embeddings(net.double(), image.double(), "fp64").dtype == torch.float64


def test_noted_buffers_come_back_as_often_as_asked():
    net = nn.BatchNorm1d(3)
    buffers = BufferSnapshot(net)
    for _ in range(2):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        buffers.note()
        net(torch.randn(5, 3))
        buffers.put_back()
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        net(torch.randn(5, 3))
    BufferSnapshot(nn.Identity()).put_back()


def test_what_a_pass_does_to_buffers_is_undone():
    net = nn.BatchNorm1d(3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with preserve_buffers(net):
        net(torch.randn(5, 3))
        assert not torch.equal(net.running_mean, before["running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
