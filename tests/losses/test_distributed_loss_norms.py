import math

import pytest
import torch

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.losses.distributed_loss import EmbeddingNormStatistics
from hsadml_dist.losses.margins import AdaptiveNorm
from tests.losses import slow_loop

SETTINGS = AdaptiveNorm(concentration=slow_loop.CONCENTRATION, momentum=0.1)
LENGTHS = torch.tensor([3.0, 8.0, 5.5, 0.0, 7.0, 400.0, 6.0])
"""One is below and one above what counts."""


def expected(lengths, mean=20.0, deviation=100.0, momentum=0.1):
    cut = [min(max(float(length), 0.001), 100.0) for length in lengths]
    new = sum(cut) / len(cut)
    spread = math.sqrt(sum((one - new) ** 2 for one in cut) / (len(cut) - 1))
    return mean + momentum * (new - mean), deviation + momentum * (spread - deviation)


def state(norms):
    return float(norms.mean), float(norms.deviation)


class Peers(SoloComm):
    """Other ranks, that have seen these lengths."""

    def __init__(self, *lengths):
        super().__init__()
        self.lengths = [torch.as_tensor(one).double().clamp(0.001, 100.0) for one in lengths]

    def all_reduce_sum(self, tensor):
        for one in self.lengths:
            tensor = tensor + torch.stack([torch.tensor(float(len(one))), one.sum(), one.square().sum()])
        return tensor


def test_norm_statistics_start_as_in_released_code():
    assert state(EmbeddingNormStatistics(SETTINGS)) == (20.0, 100.0)


def test_update_moves_statistics_towards_the_batch():
    norms = EmbeddingNormStatistics(SETTINGS)
    norms.accumulate(LENGTHS)
    assert state(norms) == (20.0, 100.0), "not before the step ends"
    norms.update(SoloComm())
    assert state(norms) == pytest.approx(expected(LENGTHS), rel=1e-14)
    once = state(norms)
    norms.accumulate(LENGTHS[:3])
    norms.update(SoloComm())
    assert state(norms) == pytest.approx(expected(LENGTHS[:3], *once), rel=1e-14)


@pytest.mark.parametrize("cuts", [[7], [3, 4], [1, 0, 6], [1] * 7])
def test_update_does_not_depend_on_microbatches(cuts):
    norms = EmbeddingNormStatistics(SETTINGS)
    for part in LENGTHS.split(cuts):
        norms.accumulate(part)
    norms.update(SoloComm())
    assert state(norms) == pytest.approx(expected(LENGTHS), rel=1e-14)


@pytest.mark.parametrize("mine", [0, 1, 4])
def test_update_includes_samples_of_other_ranks(mine):
    norms = EmbeddingNormStatistics(SETTINGS)
    norms.accumulate(LENGTHS[:mine])
    norms.update(Peers(LENGTHS[mine:5], LENGTHS[5:]))
    assert state(norms) == pytest.approx(expected(LENGTHS), rel=1e-14)


@pytest.mark.parametrize("lengths", [[], [5.0]])
def test_update_with_fewer_than_two_samples_changes_nothing(lengths):
    norms = EmbeddingNormStatistics(SETTINGS)
    norms.accumulate(torch.tensor(lengths))
    norms.update(SoloComm())
    assert state(norms) == (20.0, 100.0)
    norms.accumulate(LENGTHS)
    norms.update(SoloComm())
    assert state(norms) == pytest.approx(expected(LENGTHS), rel=1e-14), "and are forgotten"


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
    qualities_N = norms.qualities(LENGTHS.to(dtype))
    right = [slow_loop.quality(float(length), (6.0, 1.5)) for length in LENGTHS]
    assert qualities_N.tolist() == pytest.approx(right, rel=1e-6 if dtype == torch.float32 else 1e-14)
    assert qualities_N.dtype == dtype
    assert (min(right), max(right)) == (-1.0, 1.0)


def test_statistics_are_saved_and_hold_no_graph():
    norms = EmbeddingNormStatistics(SETTINGS)
    norms.accumulate(LENGTHS.clone().requires_grad_())
    norms.update(SoloComm())
    assert not norms.mean.requires_grad
    assert norms.state_dict().keys() == {"mean", "deviation"}
    twin = EmbeddingNormStatistics(SETTINGS)
    twin.load_state_dict(norms.state_dict())
    assert state(twin) == state(norms)
