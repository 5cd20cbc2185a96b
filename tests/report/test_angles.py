import pytest

from hsadml_dist.report.angles import angles_section, even_angle
from tests.report.made_up import full_result_of


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
