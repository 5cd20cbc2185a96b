import math

import pytest
import torch

from hsadml_dist.comm import SoloComm
from hsadml_dist.losses import hyperspherical_energy as energy_file
from hsadml_dist.losses.centres import Centres, initial_rows
from hsadml_dist.losses.energy import hyperspherical_energy
from tests.losses import slow_loop


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def told(request, ranks):
    """Energies and gradients from each of W real processes."""
    return ranks("losses/exchange_ranks.py", request.param, "energy")


def slow(rows_CD):
    rows_CD = rows_CD.double().requires_grad_()
    value = slow_loop.energy(rows_CD)
    return value.detach(), torch.autograd.grad(value, rows_CD)[0]


def centres_of(rows_CD):
    centres = Centres(*rows_CD.shape, seed=0).to(rows_CD.dtype)
    centres.weight.data = rows_CD
    return centres


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
@pytest.mark.parametrize("block", [2, 64])
@pytest.mark.parametrize("classes", [2, 9])
def test_ranks_together_find_the_slow_loops_energy_and_gradient(told, layout, block, classes):
    value, grad_CD = slow(initial_rows(range(classes), 4, seed=0))
    answers = [answer[layout, classes, block] for answer in told]
    assert sum(len(grad) for _, grad in answers) == classes * (len(told) if layout == "replicated" else 1)
    found = torch.cat([grad for _, grad in answers]) if layout == "sharded" else answers[-1][1]
    assert (found - grad_CD).norm() <= 1e-10 * grad_CD.norm()
    for one, _ in answers:
        assert float(one) == pytest.approx(float(value), rel=1e-12)


def test_a_single_class_has_no_energy(told):
    for answer in told:
        for layout in ("replicated", "sharded"):
            value, grad_CD = answer[layout, 1, 2]
            assert float(value) == 0
            assert not grad_CD.any()


def test_lengths_of_rows_do_not_count(monkeypatch):
    monkeypatch.setattr(energy_file, "ENERGY_BLOCK", 3)
    rows_CD = initial_rows(range(7), 4, seed=2).double() * torch.arange(1.0, 8.0)[:, None]
    value, grad_CD = slow(rows_CD)
    centres = centres_of(rows_CD)
    found = hyperspherical_energy(centres, "replicated", SoloComm())
    found.backward()
    assert float(found.detach()) == pytest.approx(float(value), rel=1e-12)
    torch.testing.assert_close(centres.weight.grad, grad_CD, rtol=1e-10, atol=1e-14)
    along_C = (centres.weight.grad * rows_CD).sum(dim=1)
    assert along_C.abs().max() < 1e-12


def test_two_classes():
    centres = centres_of(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    assert float(hyperspherical_energy(centres, "replicated", SoloComm()).detach()) == pytest.approx(
        (math.pi / 2) ** -2
    )


def test_a_step_downhill_spreads_the_centres():
    crowd = initial_rows(range(6), 3, seed=0) + torch.tensor([2.0, 0, 0])
    centres = centres_of(torch.nn.functional.normalize(crowd, dim=1))
    course = []
    for _ in range(100):
        value = hyperspherical_energy(centres, "replicated", SoloComm())
        course.append(float(value.detach()))
        (grad_CD,) = torch.autograd.grad(value, centres.weight)
        centres.weight.data = torch.nn.functional.normalize(centres.weight.data - 0.5 * grad_CD, dim=1)
    # Six points on a sphere at their best: an octahedron, 4 right angles and one straight to each.
    best = (4 * (math.pi / 2) ** -2 + math.pi**-2) / 5
    assert course[0] > 2 * best
    assert course[-1] == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_opposite_and_zero_rows_have_finite_gradients(dtype):
    rows_CD = torch.tensor([[1, 2, 3], [2, 4, 6], [-1, -2, -3], [0, 0, 0], [0, 1, 0]], dtype=dtype)
    centres = centres_of(rows_CD)
    value = hyperspherical_energy(centres, "replicated", SoloComm())
    value.backward()
    assert value.isfinite()
    assert centres.weight.grad.isfinite().all()
    assert not centres.weight.grad[3].any()
