"""Text of numbers, units and names."""

import pytest

from hsadml_dist.report.formatting import (
    counted,
    degrees,
    listed,
    method_title,
    ordered_methods,
    p_equation,
    p_value,
    percent,
    percent_interval,
    points,
    thousands,
    unit_title,
)


@pytest.mark.parametrize(("angle", "text"), [(None, "-"), (float("nan"), "-"), (12.34, "12.3°")])
def test_degrees_of_missing_angle_is_a_dash(angle: float | None, text: str) -> None:
    assert degrees(angle) == text


def test_p_value_has_no_leading_zero_and_a_lower_bound() -> None:
    assert [p_value(p) for p in (1.0, 0.24, 0.0849, 0.00099, 0.001)] == ["1", ".24", ".085", "< .001", ".001"]
    assert p_equation(0.24) == "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}.24"


def test_points_are_signed_and_zero_is_not() -> None:
    assert [points(share) for share in (0.012, -0.008, 0.0001, -0.0001)] == ["+1.2", "\N{MINUS SIGN}0.8", "0.0", "0.0"]


def test_percent_and_interval_of_missing_value_is_a_dash() -> None:
    assert (percent(0.8125), percent(0.95, 0), percent(None)) == ("81.2%", "95%", "-")
    assert (percent_interval((0.5, 0.75)), percent_interval(None)) == ("50.0% to 75.0%", "-")


def test_counts_have_separators_and_plural() -> None:
    assert (counted(1, "slice"), counted(1300, "slice")) == ("1 slice", "1,300 slices")
    assert (thousands(1300), thousands(None)) == ("1,300", "-")


def test_methods_are_ordered_with_unknown_ones_before_controls() -> None:
    assert list(ordered_methods(dict.fromkeys(("low_level", "raw_pixels", "new_method", "head", "knn")))) == [
        "knn",
        "head",
        "new_method",
        "raw_pixels",
        "low_level",
    ]
    assert (method_title("knn_5"), method_title("new_method")) == ("k-NN, k = 5", "new method")


def test_unit_person_is_a_patient() -> None:
    assert [unit_title(unit) for unit in ("person", "exam", "slice")] == ["patient", "exam", "slice"]


def test_listed_counts_names_beyond_the_first() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefgh")) == "a, b, c, d, e and 3 more"
