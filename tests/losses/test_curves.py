import math

import pytest
import torch

from hsadml_dist.losses import curves
from tests.losses import slow_loop
from tests.losses.slow_loop import Rule

WHOLE = [1, 2, 3, 4, 5, 8]
REAL = [1.25, 1.5, 1.7, 2.5, 3.9]

TARGETS = (
    [(curves.multiplied_angle(m), Rule(name="sphereface", m=m)) for m in WHOLE + REAL]
    + [(curves.annealed(curves.multiplied_angle(4), 5.0), Rule(name="sphereface", m=4, weight=5.0))]
    + [(curves.clipped_multiplied_angle(m), Rule(name="sphereface_r_v1", m=m)) for m in (1, 1.5, 2, 4)]
    + [(curves.shifted(m), Rule(name="cosface", m=m)) for m in (0, 0.35)]
    + [(curves.added_angle(m), Rule(name="arcface", m=m)) for m in (0, 0.5, 1.2, 3.0)]
    + [(curves.sharpened(slow_loop.SHARPNESS, -0.4), Rule(name="sphereface2", m=0.4))]
    + [(curves.identity, Rule(name="softmax"))]
)
OTHERS = (
    [(curves.divided_angle(m), Rule(name="sphereface_r_v2", m=m)) for m in (1, 1.4, 3)]
    + [(curves.sharpened(slow_loop.SHARPNESS, 0.4), Rule(name="sphereface2", m=0.4))]
    + [(curves.identity, Rule(name="softmax"))]
)
ALL = [curve for curve, _ in TARGETS + OTHERS]


def named(value):
    return f"{value.name} m={value.m:g}" if isinstance(value, Rule) else ""


def grid(points=401, dtype=torch.float64):
    return torch.cos(torch.linspace(0.001, math.pi - 0.001, points, dtype=torch.float64)).to(dtype)


def by_autograd(formula, cos):
    cos = cos.clone().requires_grad_()
    value = torch.stack([formula(c) for c in cos])
    return value.detach(), torch.autograd.grad(value.sum(), cos)[0]


def assert_is(curve, formula, cos):
    for found, expected in zip(curve(cos), by_autograd(formula, cos), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("curve", "rule"), TARGETS, ids=named)
def test_target_curves_match_the_papers(curve, rule):
    assert_is(curve, lambda cos: slow_loop.psi(rule, cos, 1.0, (0.0, 1.0)), grid())


@pytest.mark.parametrize(("curve", "rule"), OTHERS, ids=named)
def test_other_curves_match_the_papers(curve, rule):
    assert_is(curve, lambda cos: slow_loop.eta(rule, cos), grid())


@pytest.mark.parametrize("norm", [0.0, 3.0, 5.0, 6.5, 60.0])
@pytest.mark.parametrize("m", [0.0, 0.4, 1.5])
def test_norm_adaptive_curve_matches_the_paper(m, norm):
    rule, norms, cos = Rule(name="adaface", m=m), (5.0, 0.6), grid(101)
    quality_N = torch.full_like(cos, slow_loop.quality(norm, norms))
    assert_is(
        lambda cos_N: curves.norm_adaptive(m)(cos_N, quality_N),
        lambda cos: slow_loop.psi(rule, cos, norm, norms),
        cos,
    )


@pytest.mark.parametrize("curve", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curves_are_finite_keep_dtype_and_input(curve, dtype):
    cos = torch.cat([torch.tensor([1.0, -1.0]), grid(101), torch.nextafter(torch.ones(1), torch.zeros(1))]).to(dtype)
    before = cos.clone()
    value, slope = curve(cos)
    assert torch.equal(cos, before)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    assert value.dtype == slope.dtype == dtype
    assert value.shape == slope.shape == cos.shape


@pytest.mark.parametrize("quality", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_adaptive_curve_is_finite_at_poles(quality, dtype):
    value, slope = curves.norm_adaptive(0.4)(
        torch.tensor([1.0, -1.0], dtype=dtype), torch.full((2,), quality).to(dtype)
    )
    assert value.isfinite().all()
    assert slope.isfinite().all()
    assert value.dtype == slope.dtype == dtype


@pytest.mark.parametrize("m", WHOLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiplied_angle_is_exact_at_poles(m, dtype):
    value, slope = curves.multiplied_angle(m)(torch.tensor([1.0, -1.0], dtype=dtype))
    assert value.tolist() == [1.0, 1.0 - 2 * m]
    assert slope.tolist() == [m * m, m * m]


@pytest.mark.parametrize("m", WHOLE + REAL)
def test_multiplied_angle_decreases_continuously(m):
    value, slope = curves.multiplied_angle(m)(grid(20_001))
    assert (value.diff() <= 0).all()
    assert value.diff().abs().max() < 4 * m * math.pi / 20_000
    assert (slope >= -1e-12).all()


def test_multiplied_angle_matches_released_code_for_m_2_and_4():
    """The released code writes psi with signs of polynomials instead of k."""
    cos = grid()
    sign_0 = torch.sign(cos)
    torch.testing.assert_close(curves.multiplied_angle(2)(cos)[0], 2 * sign_0 * cos**2 - 1, rtol=0, atol=1e-12)
    sign_3 = sign_0 * torch.sign(2 * cos**2 - 1)
    expected = sign_3 * (8 * cos**4 - 8 * cos**2 + 1) + 2 * sign_0 + sign_3 - 3
    torch.testing.assert_close(curves.multiplied_angle(4)(cos)[0], expected, rtol=0, atol=1e-12)


def test_clipped_multiplied_angle_is_constant_beyond_its_end():
    end = math.pi / 1.5
    value, slope = curves.clipped_multiplied_angle(1.5)(cosines(end - 1e-6, end + 1e-6, math.pi))
    assert value.tolist() == pytest.approx([-1.0, -1.0, -1.0], abs=1e-9)
    assert slope.tolist()[1:] == [0.0, 0.0]
    assert 0 < slope[0] < 1e-4


def test_added_angle_keeps_decreasing_beyond_its_end():
    end = math.pi - 0.5
    value, slope = curves.added_angle(0.5)(cosines(end - 1e-6, end + 1e-6, math.pi))
    assert value.tolist() == pytest.approx([-1.0, -1.0, math.cos(0.5) - 2], abs=1e-6)
    assert (curves.added_angle(0.5)(grid(20_001))[0].diff() < 0).all()
    assert 0 < slope[0] < 1e-4
    assert slope.tolist()[1:] == [1.0, 1.0]


def cosines(*angles):
    return torch.cos(torch.tensor(angles, dtype=torch.float64))


@pytest.mark.parametrize("theta", [1e-2, 1e-3, 1e-4, 1e-6])
def test_slopes_are_accurate_near_the_pole(theta):
    """The cosine is rounded, so the angle that it stands for is asked, not the one it was made from."""
    cos = torch.tensor([math.cos(theta)], dtype=torch.float64)
    sine = math.sqrt((1 - float(cos)) * (1 + float(cos)))
    slope = curves.added_angle(0.5)(cos)[1]
    assert float(slope) == pytest.approx(math.sin(math.asin(sine) + 0.5) / sine, rel=1e-12)
    slope = curves.divided_angle(1.4)(cos)[1]
    assert float(slope) == pytest.approx(math.sin(math.asin(sine) / 1.4) / 1.4 / sine, rel=1e-12)


def test_characteristic_keeps_values_and_has_slope_1():
    cos = grid(11)
    value, slope = curves.characteristic(curves.multiplied_angle(3))(cos)
    assert torch.equal(value, curves.multiplied_angle(3)(cos)[0])
    assert slope.tolist() == [1.0] * 11
    quality_N = torch.linspace(-1, 1, 11, dtype=torch.float64)
    value, slope = curves.characteristic_target(curves.norm_adaptive(0.4))(cos, quality_N)
    assert torch.equal(value, curves.norm_adaptive(0.4)(cos, quality_N)[0])
    assert slope.tolist() == [1.0] * 11


def test_identity_returns_its_input_without_copy():
    cos = grid(7)
    assert curves.identity(cos)[0] is cos
    assert curves.identity(cos)[1].untyped_storage().nbytes() == cos.element_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sine_of_cosines(dtype):
    theta = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    assert (curves.sine_of(theta.cos().to(dtype)) - theta.sin()).abs().max() < 2 * curves.min_sine(dtype)
    assert curves.sine_of(torch.tensor([1.0, -1.0], dtype=dtype)).tolist() == [0.0, 0.0]
    assert curves.min_sine(dtype) ** 2 == pytest.approx(torch.finfo(dtype).eps)
