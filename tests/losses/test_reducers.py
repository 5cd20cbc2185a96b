import math

import pytest
import torch

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.losses.reducers import BinaryReducer, Exchange, SoftmaxReducer

BINARY = BinaryReducer(positive_weight=0.7, scale=40.0, start=(-46.0, -14.0))
REDUCERS = [SoftmaxReducer(), BINARY]


def draw(*shape, scale=1.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def slow_loss(reducer, target, others):
    """Return the loss of one sample as in the papers."""
    if reducer == SoftmaxReducer():
        return -torch.log(torch.exp(target) / (torch.exp(target) + torch.exp(others).sum()))
    positive, negatives = torch.log(1 + torch.exp(-target)), torch.log(1 + torch.exp(others)).sum()
    return (0.7 * positive + 0.3 * negatives) / 40


def reduce(reducer, target_N, blocks, exchange=None):
    """Return losses and gradients of target and other logits, combined from blocks."""
    total = reducer.partial(torch.full_like(target_N, -torch.inf)[:, None])
    for block_NK in blocks:
        total = reducer.combine(total, reducer.partial(block_NK.clone()))
    total = reducer.over_ranks(total, exchange or Exchange(SoloComm()))
    reduced = reducer.reduce(total, target_N)
    grads = [reducer.others_grad_(block_NK.clone(), reduced.shift_N) * reduced.factor_N[:, None] for block_NK in blocks]
    return reduced.loss_N, reduced.target_grad_N, torch.cat(grads, dim=1)


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("sizes", [[7], [1] * 7, [3, 4], [5, 1, 1]])
@pytest.mark.parametrize("scale", [0.1, 3.0, 12.0])
def test_reducer_over_blocks_matches_autograd(reducer, sizes, scale):
    target_N, other_NK = draw(20, scale=scale).requires_grad_(), draw(20, 7, scale=scale, seed=1).requires_grad_()
    losses = torch.stack([slow_loss(reducer, t, o) for t, o in zip(target_N, other_NK, strict=True)])
    expected = [losses.detach(), *torch.autograd.grad(losses.sum(), (target_N, other_NK))]
    found = reduce(reducer, target_N.detach(), other_NK.detach().split(sizes, dim=1))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


class TwoRanks(Exchange):
    """Combines local values with those of another rank, message by message."""

    def __init__(self, others):
        self.others = list(others)

    def sum(self, tensor):
        return tensor.add_(self.others.pop(0))

    def max(self, tensor):
        return torch.maximum(tensor, self.others.pop(0))


@pytest.mark.parametrize("order", [1, -1])
def test_softmax_over_two_ranks_matches_one_rank(order):
    target_N, other_NK = draw(20, scale=5), draw(20, 7, scale=5, seed=1)
    halves = other_NK.split([3, 4], dim=1)[::order]
    top_N, sum_N = SoftmaxReducer().partial(halves[1].clone())
    common_N = torch.maximum(top_N, halves[0].amax(dim=1))
    exchange = TwoRanks([top_N, sum_N * (top_N - common_N).exp()])
    whole, part = (
        reduce(SoftmaxReducer(), target_N, [other_NK]),
        reduce(SoftmaxReducer(), target_N, [halves[0]], exchange),
    )
    torch.testing.assert_close(part[0], whole[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(part[1], whole[1], rtol=1e-12, atol=0)
    columns = slice(0, 3) if order == 1 else slice(3, 7)
    torch.testing.assert_close(part[2], whole[2][:, columns], rtol=1e-12, atol=0)


def test_binary_over_two_ranks_matches_one_rank():
    target_N, other_NK = draw(20, scale=5), draw(20, 7, scale=5, seed=1)
    exchange = TwoRanks(BINARY.partial(other_NK[:, 3:].clone()))
    torch.testing.assert_close(
        reduce(BINARY, target_N, [other_NK[:, :3]], exchange)[0], reduce(BINARY, target_N, [other_NK])[0]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [-5e4, -5000.0, -100.0, -60.0, 60.0, 100.0, 5000.0, 5e4])
def test_softmax_is_finite_for_distant_logits(dtype, gap):
    target_N, others_NK = torch.zeros(1, dtype=dtype), torch.tensor([[gap, gap - 1, -torch.inf]], dtype=dtype)
    loss_N, target_grad_N, others_grad_NK = reduce(SoftmaxReducer(), target_N, others_NK.split(1, dim=1))
    both = math.log1p(math.exp(-1))
    loss = gap + both if gap > 0 else math.log1p(math.exp(gap + both))
    assert float(loss_N) == pytest.approx(loss, rel=1e-5, abs=1e-40)
    assert float(target_grad_N) == pytest.approx(-1 if gap > 0 else -math.exp(gap + both), rel=1e-5, abs=1e-40)
    assert others_grad_NK.isfinite().all()
    assert float(others_grad_NK.sum()) == pytest.approx(-float(target_grad_N), rel=1e-5, abs=1e-40)
    assert others_grad_NK[0, 2] == 0


@pytest.mark.parametrize("reducer", REDUCERS)
def test_reducer_without_other_classes(reducer):
    target_N = torch.tensor([3.0, -50.0])
    loss_N, target_grad_N, _ = reduce(reducer, target_N, [torch.full((2, 1), -torch.inf)])
    if reducer == SoftmaxReducer():
        assert loss_N.tolist() == target_grad_N.tolist() == [0.0, 0.0]
    else:
        assert loss_N.tolist() == pytest.approx([0.7 * math.log1p(math.exp(-3)) / 40, 0.7 * 50 / 40], rel=1e-5)


@pytest.mark.parametrize("reducer", REDUCERS)
def test_reducer_without_samples(reducer):
    loss_N, target_grad_N, grad_NK = reduce(reducer, torch.empty(0), [torch.empty(0, 3)])
    assert (loss_N.shape, target_grad_N.shape, grad_NK.shape) == ((0,), (0,), (0, 3))


def test_gradient_of_well_separated_sample_is_accurate():
    """The target probability is 1 up to 1e-22, so p - 1 is exactly 0 in floating point."""
    loss_N, target_grad_N, grad_NK = reduce(SoftmaxReducer(), torch.tensor([50.0]), [torch.tensor([[0.0, -1.0]])])
    share = math.exp(-50) + math.exp(-51)
    assert float(loss_N) == pytest.approx(share, rel=1e-6, abs=0)
    assert float(target_grad_N) == pytest.approx(-share, rel=1e-6, abs=0)
    assert grad_NK[0].tolist() == pytest.approx([math.exp(-50), math.exp(-51)], rel=1e-6, abs=0)


def test_gradient_of_misclassified_sample_is_accurate():
    """Many equal logits, for which the sum of logit and logarithm would lose digits."""
    other_NK = 60 + draw(50, 40).float()
    _, _, grad_NK = reduce(SoftmaxReducer(), torch.full((50,), -60.0), other_NK.split(8, dim=1))
    expected_NK = torch.softmax(other_NK.double(), dim=1)
    assert (grad_NK.double() / expected_NK - 1).abs().max() < 6 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("reducer", "expected"),
    [(SoftmaxReducer(), 21 + math.log1p(math.exp(-21))), (BINARY, (10.5 + math.log1p(math.exp(-10.5))) / 40)],
)
def test_medium_loss_is_accurate_to_fp64(reducer, expected):
    target_N, others_NK = torch.tensor([-10.5], dtype=torch.float64), torch.tensor([[10.5]], dtype=torch.float64)
    assert float(reduce(reducer, target_N, [others_NK])[0]) == pytest.approx(expected, rel=1e-15)


def test_binary_loss_of_easy_sample_is_accurate():
    loss_N, target_grad_N, grad_NK = reduce(BINARY, torch.tensor([60.0]), [torch.tensor([[-50.0]])])
    assert float(loss_N) == pytest.approx((0.7 * math.exp(-60) + 0.3 * math.exp(-50)) / 40, rel=1e-5, abs=0)
    assert float(target_grad_N) == pytest.approx(-0.7 * math.exp(-60) / 40, rel=1e-5, abs=0)
    assert float(grad_NK) == pytest.approx(0.3 * math.exp(-50) / 40, rel=1e-5, abs=0)


@pytest.mark.parametrize("classes", [2, 3, 4, 11, 1000, 10**7])
@pytest.mark.parametrize("scale", [1.0, 40.0, 64.0, 500.0])
@pytest.mark.parametrize("weight", [0.01, 0.5, 0.7, 0.99])
def test_initial_bias_balances_target_and_other_gradients(classes, scale, weight):
    target, other = scale * -1.15, scale * -0.35
    bias = BinaryReducer(positive_weight=weight, scale=scale, start=(target, other)).initial_bias(classes)

    def log_sigmoid(x):
        return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))

    pull = math.log(weight) + log_sigmoid(-(target + bias))
    push = math.log(1 - weight) + math.log(classes - 1) + log_sigmoid(other + bias)
    assert pull == pytest.approx(push, rel=1e-9, abs=1e-9)


def test_initial_bias_without_other_classes_and_of_softmax():
    assert BINARY.initial_bias(1) == 46.0
    assert BinaryReducer(positive_weight=1.0, scale=40.0, start=(-46.0, -14.0)).initial_bias(3) == 46.0
    assert SoftmaxReducer().initial_bias(10) is None
