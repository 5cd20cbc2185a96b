import math

import pytest
import torch

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.losses import centres as centres_module
from hsadml_dist.losses.centres import Centres, at_least_fp32, hyperspherical_energy, initial_rows, resolve_layout
from tests.losses import slow_loop


def test_initial_rows_depend_only_on_seed_and_class():
    rows = initial_rows(range(10), 6, seed=3)
    assert torch.equal(initial_rows(range(4, 7), 6, seed=3), rows[4:7])
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(initial_rows(range(10), 6, seed=3), rows)


def test_initial_rows_differ_between_seeds_and_classes():
    rows = torch.cat([initial_rows(range(20), 6, seed=seed) for seed in (0, 1, 2, 2**40)])
    assert len({tuple(row.tolist()) for row in rows}) == 80
    cosines = rows @ rows.t() - torch.eye(80)
    assert cosines.abs().max() < 0.999


def test_initial_rows_are_unit_fp32_and_keep_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rows = initial_rows(range(7), 5, seed=0)
    assert torch.equal(torch.rand(3), expected)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(7))
    assert rows.dtype == torch.float32


def test_initial_rows_are_spread_over_the_sphere():
    rows = initial_rows(range(2000), 8, seed=0)
    # Means of 2000 components of variance 1/8: standard deviation 0.0079.
    assert rows.mean(dim=0).abs().max() < 5 * 0.0079


def test_initial_rows_without_classes_are_empty():
    assert initial_rows(range(0), 4, seed=0).shape == (0, 4)


def test_centres_hold_all_or_the_given_rows():
    whole, part, nothing = Centres(7, 4, seed=2), Centres(7, 4, seed=2, rows=range(2, 5)), Centres(7, 4, 2, range(3, 3))
    assert (whole.rows, part.rows, nothing.rows) == (range(7), range(2, 5), range(3, 3))
    assert whole.classes == part.classes == nothing.classes == 7
    assert torch.equal(whole.weight, initial_rows(range(7), 4, seed=2))
    assert torch.equal(part.weight, whole.weight[2:5])
    assert nothing.weight.shape == (0, 4)
    assert [name for name, _ in part.named_parameters()] == ["weight"]


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_resolve_layout_keeps_explicit_layout(layout):
    for classes, world in ((3, 1), (3, 4), (10**6, 4)):
        assert resolve_layout(layout, classes=classes, global_batch=8, world_size=world) == layout


@pytest.mark.parametrize(
    ("classes", "world", "layout"),
    [(3, 4, "replicated"), (16, 4, "replicated"), (17, 2, "sharded"), (10**6, 64, "sharded"), (10**6, 1, "replicated")],
)
def test_resolve_layout_auto_chooses_smaller_messages(classes, world, layout):
    assert resolve_layout("auto", classes=classes, global_batch=8, world_size=world) == layout


def test_at_least_fp32_raises_half_precision_only():
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    assert [at_least_fp32(torch.ones(1, dtype=kind)).dtype for kind in kinds] == [torch.float32] * 3 + [torch.float64]


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
def test_energy_on_ranks_matches_slow_loop(told, layout, block, classes):
    value, grad_CD = slow(initial_rows(range(classes), 4, seed=0))
    answers = [answer[layout, classes, block] for answer in told]
    assert sum(len(grad) for _, grad in answers) == classes * (len(told) if layout == "replicated" else 1)
    found = torch.cat([grad for _, grad in answers]) if layout == "sharded" else answers[-1][1]
    assert (found - grad_CD).norm() <= 1e-10 * grad_CD.norm()
    for one, _ in answers:
        assert float(one) == pytest.approx(float(value), rel=1e-12)


def test_energy_of_single_class_is_zero(told):
    for answer in told:
        for layout in ("replicated", "sharded"):
            value, grad_CD = answer[layout, 1, 2]
            assert float(value) == 0
            assert not grad_CD.any()


def test_energy_ignores_row_lengths(monkeypatch):
    monkeypatch.setattr(centres_module, "ENERGY_BLOCK", 3)
    rows_CD = initial_rows(range(7), 4, seed=2).double() * torch.arange(1.0, 8.0)[:, None]
    value, grad_CD = slow(rows_CD)
    centres = centres_of(rows_CD)
    found = hyperspherical_energy(centres, "replicated", SoloComm())
    found.backward()
    assert float(found.detach()) == pytest.approx(float(value), rel=1e-12)
    torch.testing.assert_close(centres.weight.grad, grad_CD, rtol=1e-10, atol=1e-14)
    along_C = (centres.weight.grad * rows_CD).sum(dim=1)
    assert along_C.abs().max() < 1e-12


def test_energy_of_two_classes():
    centres = centres_of(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    assert float(hyperspherical_energy(centres, "replicated", SoloComm()).detach()) == pytest.approx(
        (math.pi / 2) ** -2
    )


def test_energy_descent_spreads_the_centres():
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
def test_energy_of_degenerate_rows_has_finite_gradients(dtype):
    rows_CD = torch.tensor([[1, 2, 3], [2, 4, 6], [-1, -2, -3], [0, 0, 0], [0, 1, 0]], dtype=dtype)
    centres = centres_of(rows_CD)
    value = hyperspherical_energy(centres, "replicated", SoloComm())
    value.backward()
    assert value.isfinite()
    assert centres.weight.grad.isfinite().all()
    assert not centres.weight.grad[3].any()
