import math

import pytest
import torch

from hsadml_dist.distributed.comm import FakeComm, SoloComm
from hsadml_dist.losses.distributed_loss import EmbeddingNormStatistics
from hsadml_dist.losses.margins import AdaptiveNorm
from tests.losses import slow_loop

SETTINGS = AdaptiveNorm(concentration=slow_loop.CONCENTRATION, momentum=0.1)
NORMS = torch.tensor([3.0, 8.0, 5.5, 0.0, 7.0, 400.0, 6.0])
"""One norm is below and one above the clamping range."""


def expected(norms_seen, mean=20.0, deviation=100.0, momentum=0.1):
    cut = [min(max(float(norm), 0.001), 100.0) for norm in norms_seen]
    new = sum(cut) / len(cut)
    spread = math.sqrt(sum((one - new) ** 2 for one in cut) / (len(cut) - 1))
    return mean + momentum * (new - mean), deviation + momentum * (spread - deviation)


def state(norms):
    return float(norms.mean), float(norms.deviation)


class Peers(FakeComm):
    """Other ranks with these embedding norms."""

    def __init__(self, *norms_seen):
        super().__init__(0, 1 + len(norms_seen))
        self.norms_seen = [torch.as_tensor(one).double().clamp(0.001, 100.0) for one in norms_seen]

    def all_reduce_sum(self, tensor):
        for one in self.norms_seen:
            tensor = tensor + torch.stack([torch.tensor(float(len(one))), one.sum(), one.square().sum()])
        return tensor


def test_norm_statistics_start_as_in_released_code():
    assert state(EmbeddingNormStatistics(SETTINGS)) == (20.0, 100.0)


def test_update_moves_statistics_towards_the_batch():
    norms = EmbeddingNormStatistics(SETTINGS)
    norms.accumulate(NORMS)
    assert state(norms) == (20.0, 100.0), "statistics must not change before the step ends"
    norms.update(SoloComm())
    assert state(norms) == pytest.approx(expected(NORMS), rel=1e-14)
    once = state(norms)
    norms.accumulate(NORMS[:3])
    norms.update(SoloComm())
    assert state(norms) == pytest.approx(expected(NORMS[:3], *once), rel=1e-14)


@pytest.mark.parametrize("cuts", [[7], [3, 4], [1, 0, 6], [1] * 7])
def test_update_does_not_depend_on_microbatches(cuts):
    norms = EmbeddingNormStatistics(SETTINGS)
    for part in NORMS.split(cuts):
        norms.accumulate(part)
    norms.update(SoloComm())
    assert state(norms) == pytest.approx(expected(NORMS), rel=1e-14)


@pytest.mark.parametrize("mine", [0, 1, 4])
def test_update_includes_samples_of_other_ranks(mine):
    norms = EmbeddingNormStatistics(SETTINGS)
    norms.accumulate(NORMS[:mine])
    norms.update(Peers(NORMS[mine:5], NORMS[5:]))
    assert state(norms) == pytest.approx(expected(NORMS), rel=1e-14)


@pytest.mark.parametrize("norms_seen", [[], [5.0]])
def test_update_with_fewer_than_two_samples_changes_nothing(norms_seen):
    norms = EmbeddingNormStatistics(SETTINGS)
    norms.accumulate(torch.tensor(norms_seen))
    norms.update(SoloComm())
    assert state(norms) == (20.0, 100.0)
    norms.accumulate(NORMS)
    norms.update(SoloComm())
    assert state(norms) == pytest.approx(expected(NORMS), rel=1e-14), "earlier samples must not count"


def test_update_with_equal_norms_gives_zero_deviation():
    norms = EmbeddingNormStatistics(AdaptiveNorm(momentum=1.0))
    norms.accumulate(torch.full((1000,), 9.87654321))
    norms.update(SoloComm())
    assert float(norms.deviation) == pytest.approx(0, abs=1e-6)
    qualities_N = norms.qualities(torch.tensor([9.0, 11.0]))
    assert qualities_N.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_qualities_match_slow_loop(dtype):
    norms = EmbeddingNormStatistics(SETTINGS)
    norms.mean.fill_(6.0)
    norms.deviation.fill_(1.5)
    qualities_N = norms.qualities(NORMS.to(dtype))
    right = [slow_loop.quality(float(norm), (6.0, 1.5)) for norm in NORMS]
    assert qualities_N.tolist() == pytest.approx(right, rel=1e-6 if dtype == torch.float32 else 1e-14)
    assert qualities_N.dtype == dtype
    assert (min(right), max(right)) == (-1.0, 1.0)


def test_statistics_are_saved_and_hold_no_graph():
    norms = EmbeddingNormStatistics(SETTINGS)
    norms.accumulate(NORMS.clone().requires_grad_())
    norms.update(SoloComm())
    assert not norms.mean.requires_grad
    assert norms.state_dict().keys() == {"mean", "deviation"}
    twin = EmbeddingNormStatistics(SETTINGS)
    twin.load_state_dict(norms.state_dict())
    assert state(twin) == state(norms)
