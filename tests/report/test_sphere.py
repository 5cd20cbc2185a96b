"""The map of the sphere and the even spread of centres, against known geometry."""

from __future__ import annotations

import numpy as np
import pytest

from hsadml_dist.report.sphere import even_spread, project_on_sphere


def on_equator(degrees: list[float], dim: int = 6) -> np.ndarray:
    """Return unit vectors at these angles in a random plane."""
    angle = np.radians(degrees)
    flat = np.zeros((len(degrees), dim))
    flat[:, 0], flat[:, 1] = np.cos(angle), np.sin(angle)
    return flat @ np.linalg.qr(np.random.default_rng(4).normal(size=(dim, dim)))[0]


def test_projection_puts_three_classes_of_a_plane_on_the_equator() -> None:
    degrees = [0, 1, -1, 120, 121, 119, 240, 241, 239]
    label = np.repeat([0, 1, 2], 3)
    sphere = project_on_sphere(on_equator(degrees) * np.arange(1, 10)[:, None], label, on_equator([0, 120, 240]) * 3)
    assert np.abs(sphere.point_N2[:, 1]).max() < 1e-6
    assert sum(sphere.explained[:2]) == pytest.approx(1)
    apart = np.degrees(np.diff(np.sort(sphere.centre_C2[:, 0])))
    assert apart == pytest.approx([120, 120], abs=0.01)
    # The edge of the map is between two classes and cuts through none.
    assert np.degrees(np.abs(sphere.point_N2[:, 0])).max() == pytest.approx(121, abs=0.01)
    assert sphere.own_angle_C == pytest.approx([2 / 3] * 3, abs=1e-5)
    assert sphere.other_angle_C == pytest.approx([120 - 2 / 3] * 3, abs=1e-5)


def test_projection_is_reproducible_and_has_no_angle_for_an_empty_class() -> None:
    generator = np.random.default_rng(0)
    emb, label, centres = generator.normal(size=(50, 7)), generator.integers(0, 3, 50), generator.normal(size=(4, 7))
    first, second = project_on_sphere(emb, label, centres), project_on_sphere(emb.copy(), label, centres)
    assert np.array_equal(first.point_N2, second.point_N2)
    assert first.count_C.tolist() == [*np.bincount(label), 0]
    assert np.isnan(first.own_angle_C[3])
    assert np.isfinite(first.own_angle_C[:3]).all()


def test_projection_of_two_dimensions_and_zero_rows_is_finite() -> None:
    sphere = project_on_sphere(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), np.array([0, 0, 1]), np.eye(2))
    assert np.isfinite(sphere.point_N2).all()
    assert sphere.explained[2] == 0


@pytest.mark.parametrize(("classes", "angle"), [(2, 180), (3, 120), (4, 109.4712)])
def test_even_spread_is_a_regular_simplex(classes: int, angle: float) -> None:
    spread = even_spread(classes, dim=3)
    assert spread is not None
    assert spread.angle == pytest.approx(angle, abs=1e-3)
    radians = np.radians(angle)
    expected = {"s0": -np.log(radians), "s1": 1 / radians, "s2": 1 / radians**2}
    assert spread.energy == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("classes", "dim"), [(4, 2), (3, None), (1, 8)])
def test_even_spread_needs_enough_dimensions_and_two_classes(classes: int, dim: int | None) -> None:
    assert even_spread(classes, dim) is None
