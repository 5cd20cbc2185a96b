import time

import pytest
import torch
from torch import nn

from hsadml_dist.stop.own_time import ComputeTimer

CPU = torch.device("cpu")


class Slow(torch.autograd.Function):
    """Sleeps in both passes."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


class Net(nn.Module):
    """Takes a known time in each pass."""

    def __init__(self, seconds):
        super().__init__()
        self.first, self.last, self.seconds = nn.Linear(2, 2), nn.Linear(2, 2), seconds

    def forward(self, x):
        return self.last(Slow.apply(self.first(x), self.seconds))


def test_both_passes_count_and_what_lies_between_them_does_not():
    net = Net(0.05)
    own = ComputeTimer(net, CPU)
    began = time.perf_counter()
    out = net(torch.ones(1, 2))
    time.sleep(0.2)  # the loss waits for other ranks here
    out.sum().backward()
    time.sleep(0.2)
    seconds = own.take()
    assert 0.1 <= seconds <= time.perf_counter() - began - 0.4
    assert own.take() == 0


def test_parts_of_an_accumulated_step_add_up():
    net = Net(0.02)
    own = ComputeTimer(net, CPU)
    for _ in range(3):
        net(torch.ones(1, 2)).sum().backward()
    assert own.take() >= 3 * 2 * 0.02


def test_an_evaluation_does_not_count():
    net = Net(0.02)
    own = ComputeTimer(net, CPU)
    with torch.no_grad():
        net(torch.ones(1, 2))
    assert own.take() == 0


def test_gradients_are_as_without_the_measure():
    torch.manual_seed(0)
    nets = [Net(0.0), Net(0.0)]
    nets[1].load_state_dict(nets[0].state_dict())
    ComputeTimer(nets[1], CPU)
    x = torch.randn(5, 2)
    for net in nets:
        net(x).square().sum().backward()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_first_parameter_that_learns_ends_the_backward_pass():
    net = Net(0.02)
    net.first.requires_grad_(False)
    own = ComputeTimer(net, CPU)
    net(torch.ones(1, 2)).sum().backward()
    assert own.take() >= 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_its_own_clock_counts():
    device = torch.device("cuda")
    net = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))).to(device)
    own = ComputeTimer(net, device)
    x = torch.ones(4096, 2048, device=device)
    for _ in range(3):
        net(x).sum().backward()
    torch.cuda.synchronize()
    own.take()
    began = time.perf_counter()
    net(x).sum().backward()
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    assert 0.3 * took < own.take() < 1.1 * took
