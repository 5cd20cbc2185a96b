import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from hsadml_dist.comm import SoloComm
from hsadml_dist.losses.centres import ReplicatedCentres, initial_rows
from hsadml_dist.losses.distributed import DistributedLoss, cosines, margin_losses
from hsadml_dist.losses.margins import LOSSES, Annealing, build_margin

STEP = 100
WEIGHT = 1000 / 13
"""A-Softmax's lambda at that step, with the default annealing."""

CASES = [
    ("softmax", None, None),
    ("softmax", None, 5.0),
    ("sphereface", 1, None),
    ("sphereface", 2, None),
    ("sphereface", 3, 4.0),
    ("sphereface", 4, None),
    ("sphereface", 5, None),
    ("cosface", 0.0, 8.0),
    ("cosface", 0.2, 8.0),
    ("cosface", 0.35, None),
]
SCALES = {"softmax": 30.0, "sphereface": None, "cosface": 64.0}


def load_slow_loop():
    spec = importlib.util.spec_from_file_location("slow_loop", Path(__file__).parent / "slow_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


slow = load_slow_loop()


def draw(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def margin(name, m=None, scale=None, *, full=False):
    annealing = Annealing(base=0, minimum=0) if full else Annealing()
    return build_margin(name, m, scale, annealing)(STEP)


def with_gradients(losses, *inputs):
    return [torch.stack(list(losses)).detach(), *torch.autograd.grad(sum(losses), inputs)]


@pytest.mark.parametrize("full", [False, True], ids=["annealed", "whole margin"])
@pytest.mark.parametrize(("name", "m", "scale"), CASES)
def test_values_and_gradients_are_those_of_the_slow_loop(name, m, scale, full):
    emb, weight, label = draw(40, 6, scale=2.0), draw(5, 6, seed=1), torch.arange(40) % 5
    emb.requires_grad_(), weight.requires_grad_()
    default = {"softmax": None, "sphereface": 4, "cosface": 0.35}[name]
    m_, s_ = default if m is None else m, SCALES[name] if scale is None else scale
    expected = with_gradients(slow.losses(emb, weight, label, name, m_, s_, 0.0 if full else WEIGHT), emb, weight)
    unit = nn.functional.normalize(weight, dim=1)
    found = with_gradients(margin_losses(emb, unit, label, margin(name, m, scale, full=full)), emb, weight)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_both_poles_and_at_zero(name, dtype):
    centres = torch.eye(3, 4, dtype=dtype).requires_grad_()
    emb = torch.tensor([[1, 0, 0, 0], [-1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]], dtype=dtype).requires_grad_()
    losses = margin_losses(emb, centres, torch.tensor([0, 0, 1, 2]), margin(name, full=True))
    losses.sum().backward()
    for values in (losses, emb.grad, centres.grad):
        assert values.isfinite().all()
    assert emb.grad[3].tolist() == [0.0] * 4, "a zero embedding has no direction to improve"
    assert centres.grad.abs().max() > 0


def test_cosines_beyond_one_by_rounding_are_moved_back_but_keep_their_gradient():
    emb = nn.functional.normalize(draw(2000, 16).float(), dim=1)
    unit = nn.functional.normalize(emb, dim=1)
    beyond = (unit @ emb.t()).diagonal() > 1
    assert beyond.any(), "no cosine is rounded beyond 1 here: the test shows nothing"
    centres = emb.clone().requires_grad_()
    cos = cosines(emb, centres).diagonal()
    cos.sum().backward()
    assert cos[beyond].tolist() == [1.0] * int(beyond.sum())
    torch.testing.assert_close(centres.grad, unit, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_an_embedding_on_its_own_centre_has_a_finite_loss(name):
    centres = initial_rows(range(50), 16, 0)
    losses = margin_losses(centres, centres, torch.arange(50), margin(name, full=True))
    assert losses.isfinite().all()


def test_a_well_separated_sample_still_has_its_gradient():
    """The target's probability is 1 up to 1e-22: p - 1 is exactly 0 in any float."""
    scale, target = 30.0, 0.95
    emb = torch.tensor([[target, math.sqrt(1 - target**2), 0.0]]).requires_grad_()
    centres = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [-0.6, -0.8, 0]])
    loss = margin_losses(emb, centres, torch.tensor([0]), margin("softmax", scale=scale))
    loss.sum().backward()
    cos = (emb.detach().double() @ centres.double().t())[0]
    share = torch.exp(scale * (cos[1:] - cos[0]))
    assert float(loss.detach()) == pytest.approx(float(share.sum()), rel=1e-4)
    unit = emb.detach().double()[0]
    pull = sum(scale * p * (centres[j + 1] - centres[0]).double() for j, p in enumerate(share))
    expected = pull - (pull @ unit) * unit
    torch.testing.assert_close(emb.grad[0].double(), expected, rtol=1e-4, atol=0)
    naive = emb.detach().clone().double().requires_grad_()
    nn.functional.cross_entropy(scale * naive @ centres.double().t(), torch.tensor([0]), reduction="sum").backward()
    wrong = naive.grad[0] - (naive.grad[0] @ unit) * unit
    assert (wrong - expected).norm() > 1e-3 * expected.norm(), "the naive form is as good: the test shows nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [100.0, 5000.0])
def test_a_hopeless_sample_has_a_finite_loss(dtype, scale):
    """exp of the distance between the logits overflows; the loss is that distance."""
    emb = torch.tensor([[-1.0, 0.0]], dtype=dtype).requires_grad_()
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=dtype)
    loss = margin_losses(emb, centres, torch.tensor([0]), margin("cosface", scale=scale))
    assert float(loss.detach()) == pytest.approx(scale * 2.35, rel=1e-6)
    loss.sum().backward()
    assert emb.grad.isfinite().all()


def test_a_loss_of_middling_size_has_all_digits_of_fp64():
    emb = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    loss = margin_losses(emb, centres, torch.tensor([0]), margin("softmax", scale=10.5))
    assert float(loss) == pytest.approx(21 + math.log1p(math.exp(-21)), rel=1e-15)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_halves_are_raised_before_anything_is_computed(name, half):
    centres = ReplicatedCentres(5, 6, seed=0)
    loss = DistributedLoss(centres, build_margin(name, None, None, Annealing()), SoloComm())
    emb, label = draw(8, 6).to(half), torch.arange(8) % 5
    low, high = emb.clone().requires_grad_(), emb.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(low, label, step=1, count=8)
    value.backward()
    expected = loss(high, label, step=1, count=8)
    expected.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert torch.equal(low.grad, high.grad.to(half))


def test_fp64_stays_fp64():
    loss = DistributedLoss(
        ReplicatedCentres(5, 6, seed=0).double(), build_margin("cosface", None, None, Annealing()), SoloComm()
    )
    assert loss(draw(3, 6), torch.tensor([0, 1, 2]), step=1, count=3).dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_no_samples_no_loss_but_gradients_of_zero(name):
    centres = ReplicatedCentres(5, 6, seed=0)
    loss = DistributedLoss(centres, build_margin(name, None, None, Annealing()), SoloComm())
    emb = torch.empty(0, 6, requires_grad=True)
    value = loss(emb, torch.empty(0, dtype=torch.int64), step=1, count=4)
    value.backward()
    assert float(value) == 0
    assert emb.grad.shape == (0, 6)
    assert torch.equal(centres.weight.grad, torch.zeros(5, 6))


def test_a_single_class_has_nothing_to_lose():
    emb = draw(3, 4).requires_grad_()
    losses = margin_losses(
        emb, initial_rows(range(1), 4, 0).double(), torch.zeros(3, dtype=torch.int64), margin("cosface")
    )
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0]
    assert torch.equal(emb.grad, torch.zeros(3, 4, dtype=torch.float64))


BATCH = {"x": draw(11, 7), "label": torch.arange(11) * 3 % 5, "backbone": draw(7, 6, seed=1), "step": STEP}


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def trained(request, ranks, tmp_path_factory):
    """What W ranks with uneven shares of the batch have computed, one of them holding nothing."""
    path = tmp_path_factory.mktemp("batch") / "batch.pt"
    torch.save({**BATCH, "cases": CASES}, path)
    return ranks("losses/distributed_ranks.py", request.param, str(path))


def test_averaged_gradients_are_those_of_the_global_mean(trained):
    for place, (name, m, scale) in enumerate(CASES):
        m_ = {"softmax": None, "sphereface": 4, "cosface": 0.35}[name] if m is None else m
        s_ = SCALES[name] if scale is None else scale
        backbone = BATCH["backbone"].clone().requires_grad_()
        weight = initial_rows(range(5), 6, seed=1).double().requires_grad_()
        losses = slow.losses(BATCH["x"] @ backbone, weight, BATCH["label"], name, m_, s_, WEIGHT)
        mean = sum(losses) / 11
        expected = {"loss": mean.detach()} | dict(
            zip(("backbone", "centres"), torch.autograd.grad(mean, (backbone, weight)), strict=True)
        )
        for rank, answer in enumerate(trained):
            for key, value in expected.items():
                text = f"{name} m={m} s={scale}, rank {rank}: {key}"
                torch.testing.assert_close(
                    answer["answers"][place][key], value, rtol=1e-10, atol=1e-10, msg=lambda m, t=text: f"{t}\n{m}"
                )


def test_replicated_centres_begin_the_same_on_all_ranks(trained):
    for answer in trained:
        assert torch.equal(answer["initial"], initial_rows(range(5), 6, seed=1))
