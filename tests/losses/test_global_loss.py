import pytest
import torch

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.losses.centres import Centres
from hsadml_dist.losses.distributed_loss import DistributedLoss, LossCompute
from hsadml_dist.losses.global_loss import ScratchMatrix
from hsadml_dist.losses.margins import LOSSES, MarginSettings, build_margin
from tests.losses import autograd_losses as plain
from tests.losses import slow_loop
from tests.losses.loss_cases import CASES, FULL_MARGIN, MODES, MORE_CASES, NORMS, STEP


def draw(*shape, seed=0, scale=1.0, dtype=torch.float64):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def make(weight_CD, settings, *, norms=NORMS, **compute):
    """Return the loss with given centres, in their dtype."""
    centres = Centres(len(weight_CD), weight_CD.shape[1], seed=0)
    loss = DistributedLoss(centres, build_margin(*settings), SoloComm(), "replicated", LossCompute(**compute))
    loss.to(weight_CD.dtype)
    centres.weight.data = weight_CD.clone()
    if loss.norms is not None:
        loss.norms.double()
        loss.norms.mean.fill_(norms[0])
        loss.norms.deviation.fill_(norms[1])
    return loss


def ours(loss, emb_BD, label_B):
    """Return mean loss and gradients of embeddings and loss parameters."""
    emb_BD = emb_BD.clone().requires_grad_()
    value = loss(emb_BD, label_B, step=STEP, count=len(label_B))
    trained = [loss.centres.weight] + ([] if loss.bias is None else [loss.bias])
    return [value.detach(), *torch.autograd.grad(value, [emb_BD, *trained])]


def by_formula(formula, emb_BD, weight_CD, bias, dtype):
    """Return mean loss and gradients of a formula in a dtype."""
    leaves = [
        leaf.detach().to(dtype).clone().requires_grad_() for leaf in (emb_BD, weight_CD, bias) if leaf is not None
    ]
    value = formula(*leaves[:2], bias=leaves[2] if bias is not None else None)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def relative(one, other):
    return float((one.double() - other).norm() / other.norm())


def with_numbers(form, label_B, rule, norms=NORMS):
    """Return a formula of everything except the differentiable tensors."""
    return lambda emb_BD, weight_CD, bias: form(emb_BD, weight_CD, label_B, rule, bias=bias, norms=norms)


def slow_mean_loss(emb_BD, weight_CD, label_B, rule, *, bias, norms):
    return sum(slow_loop.losses(emb_BD, weight_CD, label_B, rule, bias=bias, norms=norms)) / len(label_B)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", MORE_CASES)
def test_loss_and_gradients_match_slow_loop(case, mode):
    emb_BD, weight_CD, label_B = draw(40, 6, scale=2.0), draw(5, 6, seed=1, scale=3.0), torch.arange(40) % 5
    loss = make(weight_CD, MORE_CASES[case].settings(mode), block=3)
    slow = with_numbers(slow_mean_loss, label_B, MORE_CASES[case].slow_rule(mode))
    expected = by_formula(slow, emb_BD, weight_CD, loss.bias, torch.float64)
    for one, other in zip(ours(loss, emb_BD, label_B), expected, strict=True):
        assert relative(one, other) <= 1e-10


@pytest.mark.parametrize("case", MORE_CASES)
def test_autograd_reference_matches_slow_loop(case):
    emb_BD, weight_CD, label_B = draw(40, 6, scale=2.0), draw(5, 6, seed=1), torch.arange(40) % 5
    bias = torch.tensor(3.0) if case == "sphereface2" else None
    expected, *found = (
        by_formula(with_numbers(form, label_B, MORE_CASES[case].rule), emb_BD, weight_CD, bias, torch.float64)
        for form in (slow_mean_loss, plain.mean_loss, plain.careful_mean_loss)
    )
    for answer in found:
        for one, other in zip(answer, expected, strict=True):
            assert relative(one, other) <= 1e-11


DISTANCES = {"random": None, "loose": 1.0, "near": 0.3, "nearer": 0.1, "nearest": 0.03}
"""Standard deviation of a component around the centre of the sample, whose components have deviation 1."""
DRAWS = 40


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("case", [*CASES, "sphereface m=4"])
def test_fp32_error_is_at_most_twice_that_of_autograd(case, distance):
    wrong = torch.tensor([fp32_errors(case, seed, DISTANCES[distance]) for seed in range(DRAWS)])
    # The loss itself is left out: both are accurate to the last digit or two, and which is closer is chance.
    mine, theirs = wrong.square().mean(dim=0).sqrt()[:, 1:]
    assert theirs.isfinite().all(), "nothing to compare with"
    assert (mine <= 2 * theirs).all(), f"root mean squares of errors: {mine.tolist()}, plain {theirs.tolist()}"
    assert (mine < 1e-3).all(), f"{mine.tolist()}"


def fp32_errors(case, seed, distance):
    """Return relative errors of loss and gradients, of the package and of autograd."""
    emb_BD, weight_CD, label_B = sphere(seed, distance)
    norm_B = emb_BD.norm(dim=1)
    norms, rule = (float(norm_B.mean()), float(norm_B.std())), MORE_CASES[case].rule
    loss = make(weight_CD, MORE_CASES[case].settings("exact"), norms=norms, block=8)
    reference, naive = (
        by_formula(with_numbers(form, label_B, rule, norms), emb_BD, weight_CD, loss.bias, dtype)
        for form, dtype in ((plain.careful_mean_loss, torch.float64), (plain.mean_loss, torch.float32))
    )
    answers = (ours(loss, emb_BD, label_B), naive)
    return [[relative(one, other) for one, other in zip(answer, reference, strict=True)] for answer in answers]


def sphere(seed, distance):
    """Return embeddings (64, 16), centres (20, 16) in fp32, and labels."""
    weight_CD, noise_BD = draw(20, 16, seed=2 * seed), draw(64, 16, seed=2 * seed + 1)
    label_B = torch.arange(64) % 20
    emb_BD = 3 * noise_BD if distance is None else weight_CD[label_B] + distance * noise_BD
    return emb_BD.float(), weight_CD.float(), label_B


def test_autograd_loses_gradient_of_well_separated_samples():
    """Otherwise the comparison above would be too easy."""
    mine, theirs = fp32_errors("softmax", 0, DISTANCES["nearest"])
    assert theirs[1] > 1e-4
    assert mine[1] < 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 3, 512])
def test_store_and_stream_are_bit_identical(case, dtype, block):
    emb_BD, weight_CD, label_B = draw(9, 6, dtype=dtype), draw(5, 6, seed=1, dtype=dtype), torch.arange(9) % 5
    settings = CASES[case].settings("exact")
    store, stream = (
        ours(make(weight_CD, settings, backward=way, block=block), emb_BD, label_B) for way in ("store", "stream")
    )
    assert all(torch.equal(one, other) for one, other in zip(store, stream, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backward", ["store", "stream"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_second_backward_is_identical_and_scales_with_factor(case, backward, rate):
    loss = make(draw(5, 6, seed=1), CASES[case].settings("exact"), backward=backward, block=2, sample_rate=rate)
    emb_BD = draw(9, 6).requires_grad_()
    value = loss(emb_BD, torch.arange(9) % 5, step=STEP, count=9)
    leaves = [emb_BD, *loss.parameters()]
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(value, leaves, retain_graph=True)
    tripled = torch.autograd.grad(3 * value, leaves)
    for one, again, three in zip(first, second, tripled, strict=True):
        assert torch.equal(one, again)
        torch.testing.assert_close(three, 3 * one, rtol=1e-14, atol=0)
        assert one.abs().max() > 0


def test_backward_detects_changed_centres():
    loss = make(draw(5, 6, seed=1), ("cosface", MarginSettings()))
    value = loss(draw(9, 6).requires_grad_(), torch.arange(9) % 5, step=1, count=9)
    with torch.no_grad():
        loss.centres.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [None, 5000.0])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_poles_and_zero(name, scale, mode, dtype):
    weight_CD = torch.eye(4, 5, dtype=dtype)
    weight_CD[3] = 0
    rows = [[1, 0, 0, 0, 0], [-1, 0, 0, 0, 0], [0, 3, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 50, 0, 0], [0, 0, 0, 0, 2]]
    emb_BD, label_B = torch.tensor(rows, dtype=dtype), torch.tensor([0, 0, 1, 2, 3, 3])
    loss = make(weight_CD, (name, MarginSettings(scale=scale, grad_mode=mode, annealing=FULL_MARGIN)))
    value, emb_grad_BD, *others = ours(loss, emb_BD, label_B)
    assert all(tensor.isfinite().all() for tensor in (value, emb_grad_BD, *others))
    assert value.dtype == emb_grad_BD.dtype == dtype
    assert torch.equal(emb_grad_BD[3], torch.zeros(5, dtype=dtype)), "a zero embedding has no direction to improve"
    assert torch.equal(others[0][3], torch.zeros(5, dtype=dtype)), "a zero centre has none either"
    assert others[0][:3].abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_embeddings_equal_to_their_centres_are_finite(name):
    """Some cosines are rounded beyond 1."""
    weight_CD = torch.nn.functional.normalize(draw(500, 16, dtype=torch.float32), dim=1)
    unit_CD = torch.nn.functional.normalize(weight_CD, dim=1)
    assert ((unit_CD @ unit_CD.T).diagonal() > 1).any(), "no cosine is beyond 1 here: the test shows nothing"
    found = ours(make(weight_CD, (name, MarginSettings(annealing=FULL_MARGIN))), weight_CD, torch.arange(500))
    assert all(tensor.isfinite().all() for tensor in found)


def test_embeddings_opposite_to_their_centres_are_finite():
    """Some cosines are rounded below -1, where a power of (cos + 1) / 2 is NaN."""
    weight_CD = torch.nn.functional.normalize(draw(500, 16, dtype=torch.float32), dim=1)
    unit_CD = torch.nn.functional.normalize(weight_CD, dim=1)
    assert ((unit_CD @ -unit_CD.T).diagonal() < -1).any(), "no cosine is below -1 here: the test shows nothing"
    settings = ("sphereface2", MarginSettings(sharpness=2.5))
    for label_C in (torch.arange(500), torch.arange(500).roll(1)):
        found = ours(make(weight_CD, settings), -weight_CD, label_C)
        assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [100.0, 5000.0])
def test_sample_next_to_another_centre_has_finite_loss(dtype, scale):
    """The exponential of the difference of the logits overflows; the loss is that difference."""
    weight_CD = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=dtype)
    emb_BD = torch.tensor([[-1.0, 0.1]], dtype=dtype)
    value, emb_grad_BD, _ = ours(make(weight_CD, ("cosface", MarginSettings(scale=scale))), emb_BD, torch.tensor([0]))
    cos = 1 / 1.01**0.5
    assert float(value) == pytest.approx(scale * (2 * cos + 0.35), rel=1e-6)
    assert emb_grad_BD.isfinite().all()
    assert emb_grad_BD[0, 0] < 0, "the gradient points from the correct centre to the incorrect one"


def drawn(classes, seed):
    return {c for c in range(classes) if slow_loop.is_drawn(c, rate=0.5, seed=seed, step=STEP)}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [64.0, 5000.0])
def test_undrawn_classes_do_not_affect_the_loss(name, scale):
    """The logit of an undrawn class is the largest, and its exponential overflows."""
    seed = next(seed for seed in range(100) if drawn(2, seed) == {1})
    weight_CD = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.01, 0.0]])
    emb_BD, label_B = torch.tensor([[1.0, 0.0, 0.02], [-1.0, 0.0, 0.01], [1.0, 0.01, 0.0]]), torch.tensor([0, 1, 1])
    loss = make(weight_CD, (name, MarginSettings(scale=scale, annealing=FULL_MARGIN)), sample_rate=0.5, seed=seed)
    found = ours(loss, emb_BD, label_B)
    assert all(tensor.isfinite().all() for tensor in found)
    # The third sample is the nearest to class 0, which does not count for it; nothing but its target does.
    alone = make(weight_CD[1:], (name, MarginSettings(scale=scale, annealing=FULL_MARGIN)))
    if loss.bias is not None:
        alone.bias.data = loss.bias.data.clone()
    torch.testing.assert_close(found[1][2], ours(alone, emb_BD[2:], torch.tensor([0]))[1][0] / 3, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_change_the_loss(name):
    weight_CD, emb_BD, label_B = (
        draw(5, 6, seed=1, dtype=torch.float32),
        draw(9, 6, dtype=torch.float32),
        torch.arange(9) % 5,
    )
    plainly = ours(make(weight_CD, (name, MarginSettings())), emb_BD, label_B)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ours(make(weight_CD, (name, MarginSettings())), emb_BD, label_B)
    assert all(torch.equal(one, other) for one, other in zip(plainly, inside, strict=True))


def test_centres_of_another_dtype_get_gradients_in_their_dtype():
    weight_CD, emb_BD, label_B = draw(5, 6, seed=1, dtype=torch.float32), draw(9, 6), torch.arange(9) % 5
    mixed = ours(make(weight_CD, CASES["sphereface2"].settings("exact")), emb_BD, label_B)
    assert [tensor.dtype for tensor in mixed] == [torch.float64, torch.float64, torch.float32, torch.float32]
    whole = ours(make(weight_CD.double(), CASES["sphereface2"].settings("exact")), emb_BD, label_B)
    for one, other in zip(mixed, whole, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-7)


def test_scratch_matrix_reuses_its_memory():
    scratch = ScratchMatrix(draw(4, 3), 5)
    first, last = scratch.matrix(5), scratch.matrix(2)
    assert (first.shape, last.shape, last.dtype) == ((4, 5), (4, 2), torch.float64)
    assert last.is_contiguous()
    assert first.data_ptr() == last.data_ptr()


@pytest.mark.parametrize("length", [1e18, 1e20, 1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_embeddings_whose_squared_norm_overflows_get_the_loss_of_higher_precision(name, length):
    """Without care the norm is infinite, the embedding becomes zeros, and its loss has no gradient."""
    weight_CD, direction_BD, label_B = draw(5, 6, seed=1), draw(4, 6), torch.arange(4) % 5
    emb_BD = (direction_BD * torch.tensor([1.0, length, 1.0, length])[:, None]).float()
    found, expected = (
        ours(make(weight_CD.to(dtype), (name, MarginSettings())), emb_BD.to(dtype), label_B)
        for dtype in (torch.float32, torch.float64)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        # Row by row: the gradients of long embeddings are small.
        torch.testing.assert_close(one.double() / other, torch.ones_like(other), rtol=1e-3, atol=0)
    assert (found[1].abs().amax(dim=1) > 0).all()
