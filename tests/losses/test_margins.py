import math

import pytest
import torch

from hsadml_dist.errors import ConfigError
from hsadml_dist.losses.curves import (
    added_angle,
    clipped_multiplied_angle,
    divided_angle,
    identity,
    multiplied_angle,
    norm_adaptive,
    sharpened,
    shifted,
)
from hsadml_dist.losses.margins import LOSSES, AdaptiveNorm, Annealing, MarginSettings, build_margin
from hsadml_dist.losses.reducers import BinaryReducer, SoftmaxReducer

WHOLE = Annealing(base=0.0, minimum=0.0)
COS = torch.cos(torch.linspace(0.1, 3.0, 11, dtype=torch.float64))
QUALITY = torch.linspace(-1, 1, 11, dtype=torch.float64)


def pair(name, **chosen):
    return build_margin(name, MarginSettings(**{"annealing": WHOLE} | chosen)).at(1)


def test_annealing_decreases_from_base_to_minimum():
    annealing = Annealing()
    assert annealing.at(0) == 1000.0
    assert annealing.at(100) == pytest.approx(1000 / 13, rel=1e-12)
    assert annealing.at(1658) == pytest.approx(1000 / (1 + 0.12 * 1658), rel=1e-12)
    assert annealing.at(1659) == 5.0
    assert annealing.at(10**9) == 5.0
    assert Annealing(base=8, gamma=1, power=2, minimum=0).at(3) == 0.5


def test_annealing_depends_on_step_not_on_calls():
    loss = build_margin("sphereface")
    late = loss.at(100)
    for step in (1, 2, 3, 100):
        loss.at(step)
    weight = 1000 / 13
    expected = (weight * COS + multiplied_angle(4)(COS)[0]) / (1 + weight)
    torch.testing.assert_close(late.psi(COS, QUALITY)[0], expected, rtol=0, atol=1e-12)
    assert torch.equal(loss.at(100).psi(COS, QUALITY)[0], late.psi(COS, QUALITY)[0])


DEFAULTS = {
    "softmax": (identity, identity, 30.0),
    "sphereface": (multiplied_angle(4), identity, None),
    "sphereface_r_v1": (clipped_multiplied_angle(1.5), identity, 30.0),
    "sphereface_r_v2": (identity, divided_angle(1.4), 60.0),
    "cosface": (shifted(0.35), identity, 64.0),
    "arcface": (added_angle(0.5), identity, 64.0),
    "sphereface2": (sharpened(3.0, -0.4), sharpened(3.0, 0.4), 40.0),
    "adaface": (norm_adaptive(0.4), identity, 64.0),
}


def test_defaults_table_covers_all_loss_names():
    assert DEFAULTS.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_match_the_papers(name):
    psi, eta, scale = DEFAULTS[name]
    found = pair(name)
    expected = psi(COS, QUALITY) if name == "adaface" else psi(COS)
    for one, other in zip((*found.psi(COS, QUALITY), *found.eta(COS)), (*expected, *eta(COS)), strict=True):
        assert torch.equal(one, other)
    assert found.scale == scale
    assert pair(name, scale=7.5).scale == 7.5


def test_settings_reach_the_loss():
    assert torch.equal(pair("sphereface", margin=2.5).psi(COS, QUALITY)[0], multiplied_angle(2.5)(COS)[0])
    assert torch.equal(pair("sphereface_r_v2", margin=2.0).eta(COS)[0], divided_angle(2.0)(COS)[0])
    assert torch.equal(pair("sphereface2", margin=0.1, sharpness=5.0).eta(COS)[0], sharpened(5.0, 0.1)(COS)[0])
    adaptive = AdaptiveNorm(concentration=0.5, momentum=0.1)
    assert build_margin("adaface", MarginSettings(adaptive=adaptive)).adaptive == adaptive
    reducer = build_margin("sphereface2", MarginSettings(positive_weight=0.9, scale=16.0)).reducer
    assert isinstance(reducer, BinaryReducer)
    assert (reducer.positive_weight, reducer.scale) == (0.9, 16.0)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"sphereface2"}))
def test_reducer_is_softmax_except_for_sphereface2(name):
    assert build_margin(name).reducer == SoftmaxReducer()
    assert (build_margin(name).adaptive is None) == (name != "adaface")


@pytest.mark.parametrize(
    ("name", "margin"),
    [("sphereface", 1.0), ("sphereface_r_v1", 1.0), ("cosface", 0.0), ("arcface", 0.0), ("softmax", 0.0)],
)
def test_neutral_margin_gives_identity_curve(name, margin):
    value, slope = pair(name, margin=margin).psi(COS, QUALITY)
    torch.testing.assert_close(value, COS, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(slope, torch.ones_like(COS), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_characteristic_mode_has_slope_1_for_both_curves(name):
    exact, detached = pair(name), pair(name, grad_mode="characteristic")
    assert torch.equal(detached.psi(COS, QUALITY)[0], exact.psi(COS, QUALITY)[0])
    assert torch.equal(detached.eta(COS)[0], exact.eta(COS)[0])
    for slope in (detached.psi(COS, QUALITY)[1], detached.eta(COS)[1]):
        assert slope.tolist() == [1.0] * 11
    assert detached.scale == exact.scale


REFUSED = [
    ("sphereface", 0.5, "must be at least 1; omit it for the default of the paper, 4"),
    ("sphereface", -1.0, "must be at least 1; "),
    ("sphereface_r_v1", 0.99, "must be at least 1; "),
    ("sphereface_r_v2", 0.0, "must be at least 1; "),
    ("cosface", -0.1, "must be at least 0; "),
    ("sphereface2", -0.1, "must be at least 0; "),
    ("adaface", -0.1, "must be at least 0; "),
    ("arcface", -0.1, "must be at least 0 and below"),
    ("arcface", 3.15, r"must be at least 0 and below 3\.142; omit it for the default of the paper, 0\.5"),
    ("softmax", 0.35, "softmax has no margin; omit it"),
]
NUMBERLESS = [
    (name, margin, "must be at least") for name in LOSSES if name != "softmax" for margin in (math.nan, math.inf)
]


@pytest.mark.parametrize(("name", "margin", "rule"), REFUSED + NUMBERLESS)
def test_build_margin_rejects_invalid_margin(name, margin, rule):
    with pytest.raises(ConfigError, match=rf"loss\.margin: .*{rule}") as caught:
        pair(name, margin=margin)
    assert "\n" not in str(caught.value)


def test_build_margin_rejects_unknown_name_with_suggestion():
    with pytest.raises(ConfigError, match=r"loss\.name: 'cosfase' is unknown \(did you mean 'cosface'\?\); allowed: "):
        build_margin("cosfase")
