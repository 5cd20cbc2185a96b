import random
import statistics
import time

import pytest
import torch
from torch import nn

from hsadml_dist.health.stragglers import (
    MIN_DIFFERENCE_SECONDS,
    ComputeTimer,
    Straggler,
    StragglerDetector,
    find_slow_ranks,
)

CPU = torch.device("cpu")


class Slow(torch.autograd.Function):
    """Identity that sleeps in both passes."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


class TinyNet(nn.Module):
    """A network that takes at least ``seconds`` in each pass."""

    def __init__(self, seconds):
        super().__init__()
        self.first, self.last, self.seconds = nn.Linear(2, 2), nn.Linear(2, 2), seconds

    def forward(self, x):
        return self.last(Slow.apply(self.first(x), self.seconds))


def test_compute_timer_measures_both_passes_and_nothing_between_them():
    net = TinyNet(0.05)
    timer = ComputeTimer(net, CPU)
    began = time.perf_counter()
    out = net(torch.ones(1, 2))
    time.sleep(0.2)  # the loss waits for other ranks here
    out.sum().backward()
    time.sleep(0.2)
    seconds = timer.read_and_reset()
    assert 0.1 <= seconds <= time.perf_counter() - began - 0.4
    assert timer.read_and_reset() == 0


def test_compute_timer_adds_up_accumulated_microbatches():
    net = TinyNet(0.02)
    timer = ComputeTimer(net, CPU)
    for _ in range(3):
        net(torch.ones(1, 2)).sum().backward()
    assert timer.read_and_reset() >= 3 * 2 * 0.02


def test_compute_timer_ignores_evaluation():
    net = TinyNet(0.02)
    timer = ComputeTimer(net, CPU)
    with torch.no_grad():
        net(torch.ones(1, 2))
    assert timer.read_and_reset() == 0


def test_compute_timer_does_not_change_gradients():
    torch.manual_seed(0)
    nets = [TinyNet(0.0), TinyNet(0.0)]
    nets[1].load_state_dict(nets[0].state_dict())
    ComputeTimer(nets[1], CPU)
    x = torch.randn(5, 2)
    for net in nets:
        net(x).square().sum().backward()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_compute_timer_works_with_frozen_first_parameters():
    net = TinyNet(0.02)
    net.first.requires_grad_(False)
    timer = ComputeTimer(net, CPU)
    net(torch.ones(1, 2)).sum().backward()
    assert timer.read_and_reset() >= 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compute_timer_on_a_gpu_uses_cuda_events():
    device = torch.device("cuda")
    net = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))).to(device)
    timer = ComputeTimer(net, device)
    x = torch.ones(4096, 2048, device=device)
    for _ in range(3):
        net(x).sum().backward()
    torch.cuda.synchronize()
    timer.read_and_reset()
    began = time.perf_counter()
    net(x).sum().backward()
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    assert 0.3 * took < timer.read_and_reset() < 1.1 * took


WINDOW = 5


def feed(stragglers, *times, count=1):
    """Add the same times ``count`` times; return (number of the step, rank) of each report."""
    found = [(number, slow.rank) for number in range(1, count + 1) for slow in stragglers.add(times)]
    return found


def test_straggler_is_reported_when_the_window_is_full_and_then_at_intervals():
    stragglers = StragglerDetector(3, window=WINDOW, quiet=10)
    assert feed(stragglers, 0.1, 0.1, 0.2, count=30) == [(5, 2), (15, 2), (25, 2)]


def test_straggler_must_exceed_the_factor():
    assert feed(StragglerDetector(3, window=WINDOW), 0.1, 0.1, 0.149, count=20) == []
    assert feed(StragglerDetector(3, window=WINDOW), 0.1, 0.1, 0.151, count=20) == [(5, 2)]


def test_straggler_of_two_ranks_is_compared_with_the_faster_one():
    assert feed(StragglerDetector(2, window=WINDOW), 0.3, 0.1, count=5) == [(5, 0)]


def test_single_rank_is_never_a_straggler():
    assert feed(StragglerDetector(1, window=WINDOW), 9.0, count=20) == []


def test_one_slow_step_is_not_reported():
    stragglers = StragglerDetector(3, window=WINDOW)
    assert feed(stragglers, 0.1, 0.1, 0.1, count=4) == []
    assert feed(stragglers, 0.1, 0.1, 5.0, count=2) == []
    assert feed(stragglers, 0.1, 0.1, 0.1, count=20) == []


def test_straggler_is_reported_when_most_of_the_window_is_slow():
    stragglers = StragglerDetector(3, window=WINDOW)
    feed(stragglers, 0.1, 0.1, 0.1, count=20)
    assert feed(stragglers, 0.1, 0.3, 0.1, count=10) == [(3, 1)]


def test_quiet_interval_is_per_rank():
    stragglers = StragglerDetector(5, window=WINDOW, quiet=100)
    assert feed(stragglers, 0.1, 0.3, 0.1, 0.1, 0.1, count=10) == [(5, 1)]
    assert feed(stragglers, 0.1, 0.3, 0.1, 0.3, 0.1, count=10) == [(3, 3)]


def test_differences_of_milliseconds_are_ignored():
    assert find_slow_ranks([(0.001, 0.001, 0.001 + MIN_DIFFERENCE_SECONDS)], 1.5) == []
    assert [slow.rank for slow in find_slow_ranks([(0.001, 0.001, 0.002 + MIN_DIFFERENCE_SECONDS)], 1.5)] == [2]


@pytest.mark.parametrize("seed", range(20))
def test_find_slow_ranks_matches_a_slow_loop(seed):
    random_ = random.Random(seed)
    world, factor = random_.randint(2, 9), random_.choice([1.2, 1.5, 2.0])
    times = [tuple(random_.choice([0.1, 0.15, 0.4]) for _ in range(world)) for _ in range(random_.randint(1, 9))]
    expected = []
    own = [statistics.median([step[rank] for step in times]) for rank in range(world)]
    middle = sorted(own)[(world - 1) // 2]
    for rank in range(world):
        if own[rank] > factor * middle and own[rank] > middle + MIN_DIFFERENCE_SECONDS:
            expected.append(Straggler(rank=rank, seconds=own[rank], median=middle))
    assert find_slow_ranks(times, factor) == expected


def test_straggler_text_has_the_times():
    text = str(Straggler(rank=3, seconds=0.3, median=0.15))
    assert all(fact in text for fact in ("rank 3", "300 ms", "2.0 times", "150 ms"))
    assert "0 ms" in str(Straggler(rank=3, seconds=0.3, median=0.0))
