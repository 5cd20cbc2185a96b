"""The map of the sphere against geometry that is known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from hsadml_dist.report.sphere import angles_section, even_angle, project_on_sphere
from tests.report.report_samples import full_result_of


@pytest.mark.parametrize(("classes", "angle"), [(2, 180), (3, 120), (4, 109.4712)])
def test_even_centres_stand_as_far_apart_as_can_be(classes: int, angle: float) -> None:
    assert even_angle(classes) == pytest.approx(angle, abs=1e-3)


def energies(dim: int | None, classes: int = 3) -> list[list[str]]:
    return [list(row[:3]) for row in angles_section(full_result_of(classes), dim).tables[-1].rows]


def test_the_even_spread_stands_beside_the_energy_where_the_space_has_room_for_it() -> None:
    # 120 degrees are 2.0944 radians: their logarithm, 1 / 2.0944 and its square.
    assert energies(2) == [
        ["energy s0", "-0.727", "-0.739"],
        ["energy s1", "0.483", "0.477"],
        ["energy s2", "0.234", "0.228"],
    ]
    assert [row[2] for row in energies(2, classes=4)] == ["-"] * 3
    assert [row[2] for row in energies(None)] == ["-"] * 3


def test_a_draw_of_slices_is_said() -> None:
    result = full_result_of()
    assert "drawn by class" not in angles_section(result, 8).text
    result["geometry"]["paired"] = 20
    assert "Angles between slices are of 20 slices, drawn by class." in angles_section(result, 8).text


def on_equator(degrees: list[float], dim: int = 6) -> np.ndarray:
    """Unit vectors in the plane of the first two components, turned into a random plane."""
    angle = np.radians(degrees)
    flat = np.zeros((len(degrees), dim))
    flat[:, 0], flat[:, 1] = np.cos(angle), np.sin(angle)
    return flat @ np.linalg.qr(np.random.default_rng(4).normal(size=(dim, dim)))[0]


def test_three_separate_classes_lie_on_the_equator_at_their_angles() -> None:
    degrees = [0, 1, -1, 120, 121, 119, 240, 241, 239]
    label = np.repeat([0, 1, 2], 3)
    sphere = project_on_sphere(on_equator(degrees) * np.arange(1, 10)[:, None], label, on_equator([0, 120, 240]) * 3)
    assert np.abs(sphere.point_N2[:, 1]).max() < 1e-6
    assert sum(sphere.explained[:2]) == pytest.approx(1)
    apart = np.degrees(np.diff(np.sort(sphere.centre_C2[:, 0])))
    assert apart == pytest.approx([120, 120], abs=0.01)
    # The edge of the map lies between two classes: no class is torn apart.
    assert np.degrees(np.abs(sphere.point_N2[:, 0])).max() == pytest.approx(121, abs=0.01)
    assert sphere.own_angle_C == pytest.approx([2 / 3] * 3, abs=1e-5)
    assert sphere.other_angle_C == pytest.approx([120 - 2 / 3] * 3, abs=1e-5)


def test_the_map_is_the_same_each_time_and_a_class_without_slices_has_no_angle() -> None:
    generator = np.random.default_rng(0)
    emb, label, centres = generator.normal(size=(50, 7)), generator.integers(0, 3, 50), generator.normal(size=(4, 7))
    first, second = project_on_sphere(emb, label, centres), project_on_sphere(emb.copy(), label, centres)
    assert np.array_equal(first.point_N2, second.point_N2)
    assert first.count_C.tolist() == [*np.bincount(label), 0]
    assert np.isnan(first.own_angle_C[3])
    assert np.isfinite(first.own_angle_C[:3]).all()


def test_two_components_and_zero_rows_are_no_error() -> None:
    sphere = project_on_sphere(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), np.array([0, 0, 1]), np.eye(2))
    assert np.isfinite(sphere.point_N2).all()
    assert sphere.explained[2] == 0
