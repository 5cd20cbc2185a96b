import math

import pytest
import torch

from hsadml_dist.errors import ConfigError
from hsadml_dist.losses.margins import (
    LOSSES,
    Annealing,
    annealed,
    build_margin,
    identity,
    multiplied_angle,
    shifted,
)

PLAIN = Annealing(base=0.0, minimum=0.0)


def slow_psi(cos, m):
    """Equation 7 of A-Softmax, in plain numbers: (-1)^k cos(m theta) - 2k on [k pi/m, (k+1) pi/m]."""
    theta = math.acos(cos)
    k = min(m - 1, math.floor(m * theta / math.pi))
    return (-1) ** k * math.cos(m * theta) - 2 * k


def slow_slope(cos, m):
    """Its derivative by the cosine: (-1)^k m sin(m theta) / sin(theta)."""
    theta = math.acos(cos)
    k = min(m - 1, math.floor(m * theta / math.pi))
    return (-1) ** k * m * math.sin(m * theta) / math.sin(theta)


def grid(points=4001):
    return torch.cos(torch.linspace(0.001, math.pi - 0.001, points, dtype=torch.float64))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8])
def test_multiplied_angle_is_equation_7_with_its_derivative(m):
    cos = grid()
    value, slope = multiplied_angle(m)(cos)
    expected = [(slow_psi(c, m), slow_slope(c, m)) for c in cos.tolist()]
    torch.testing.assert_close(value, torch.tensor([v for v, _ in expected], dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(slope, torch.tensor([s for _, s in expected], dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8])
def test_multiplied_angle_falls_without_a_jump_from_1_to_1_minus_2m(m):
    value, slope = multiplied_angle(m)(grid(20_001))
    assert (value.diff() <= 0).all()
    assert value.diff().abs().max() < 4 * m * math.pi / 20_000
    assert (slope >= -1e-12).all()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiplied_angle_is_exact_at_both_poles(m, dtype):
    value, slope = multiplied_angle(m)(torch.tensor([1.0, -1.0], dtype=dtype))
    assert value.tolist() == [1.0, 1.0 - 2 * m]
    assert slope.tolist() == [m * m, m * m]
    assert value.dtype == slope.dtype == dtype


def test_the_authors_own_forms_for_m_2_and_4():
    """The released code writes psi with signs of polynomials instead of k."""
    cos = grid()
    sign_0 = torch.sign(cos)
    torch.testing.assert_close(multiplied_angle(2)(cos)[0], 2 * sign_0 * cos**2 - 1, rtol=0, atol=1e-12)
    sign_3 = sign_0 * torch.sign(2 * cos**2 - 1)
    expected = sign_3 * (8 * cos**4 - 8 * cos**2 + 1) + 2 * sign_0 + sign_3 - 3
    torch.testing.assert_close(multiplied_angle(4)(cos)[0], expected, rtol=0, atol=1e-12)


def test_shifted_and_identity():
    cos = grid(7)
    value, slope = shifted(0.35)(cos)
    torch.testing.assert_close(value, cos - 0.35)
    assert slope.tolist() == [1.0] * 7
    assert torch.equal(identity(cos)[0], cos)
    assert identity(cos)[1].tolist() == [1.0] * 7


@pytest.mark.parametrize("weight", [0.0, 5.0, 1000.0])
def test_annealed_mixes_value_and_derivative(weight):
    cos = grid(101)
    value, slope = annealed(multiplied_angle(4), weight)(cos)
    for i in range(0, 101, 10):
        c = float(cos[i])
        assert float(value[i]) == pytest.approx((weight * c + slow_psi(c, 4)) / (1 + weight), abs=1e-11)
        assert float(slope[i]) == pytest.approx((weight + slow_slope(c, 4)) / (1 + weight), abs=1e-9)


def test_lambda_falls_from_its_base_to_its_minimum():
    annealing = Annealing()
    assert annealing.at(0) == 1000.0
    assert annealing.at(100) == pytest.approx(1000 / 13, rel=1e-12)
    assert annealing.at(1658) == pytest.approx(1000 / (1 + 0.12 * 1658), rel=1e-12)
    assert annealing.at(1659) == 5.0
    assert annealing.at(10**9) == 5.0
    assert Annealing(base=8, gamma=1, power=2, minimum=0).at(3) == 0.5


def test_annealing_follows_the_step_that_is_asked_for_not_the_number_of_calls():
    schedule = build_margin("sphereface", None, None, Annealing())
    cos = grid(11)
    late = schedule(100)
    for step in (1, 2, 3, 100):
        schedule(step)
    weight = 1000 / 13
    expected = (weight * cos + multiplied_angle(4)(cos)[0]) / (1 + weight)
    torch.testing.assert_close(late.psi(cos)[0], expected, rtol=0, atol=1e-12)
    assert torch.equal(schedule(100).psi(cos)[0], late.psi(cos)[0])


@pytest.mark.parametrize(("name", "scale"), [("softmax", 30.0), ("sphereface", None), ("cosface", 64.0)])
def test_default_and_given_scales(name, scale):
    assert build_margin(name, None, None, PLAIN)(1).scale == scale
    assert build_margin(name, None, 7.5, PLAIN)(1).scale == 7.5


def test_default_margins():
    cos = grid(11)
    assert torch.equal(build_margin("softmax", None, None, PLAIN)(1).psi(cos)[0], cos)
    assert torch.equal(build_margin("sphereface", None, None, PLAIN)(1).psi(cos)[0], multiplied_angle(4)(cos)[0])
    assert torch.equal(build_margin("cosface", None, None, PLAIN)(1).psi(cos)[0], cos - 0.35)
    for name in LOSSES:
        assert torch.equal(build_margin(name, None, None, PLAIN)(1).eta(cos)[0], cos)


def test_a_margin_that_is_none_at_all():
    cos = grid(11)
    assert torch.equal(build_margin("sphereface", 1.0, None, PLAIN)(1).psi(cos)[0], cos)
    assert torch.equal(build_margin("cosface", 0.0, None, PLAIN)(1).psi(cos)[0], cos)
    assert torch.equal(build_margin("softmax", 0.0, None, PLAIN)(1).psi(cos)[0], cos)


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.5, -1.0, math.nan, math.inf])
def test_sphereface_refuses_margins_that_are_no_whole_number(margin):
    with pytest.raises(ConfigError, match=r"loss\.margin: .*whole number of at least 1, not"):
        build_margin("sphereface", margin, None, PLAIN)


def test_softmax_refuses_a_margin():
    with pytest.raises(ConfigError, match=r"loss\.margin: softmax has no margin"):
        build_margin("softmax", 0.35, None, PLAIN)


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(ConfigError, match=r"loss\.name: 'cosfase' is unknown \(did you mean 'cosface'\?\); allowed: "):
        build_margin("cosfase", None, None, PLAIN)
