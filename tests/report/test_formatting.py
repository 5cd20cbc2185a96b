"""What the sections share."""

import pytest

from hsadml_dist.report.neighbour_examples import degrees, left_out, shown, square_heads


def test_the_classes_with_most_slices_are_shown_in_the_order_of_their_labels() -> None:
    counts = [label % 7 for label in range(40)]
    labels = shown(counts)
    assert labels == sorted(labels) and len(labels) == 12
    assert min(counts[label] for label in labels) >= max(counts[label] for label in set(range(40)) - set(labels))
    assert shown([0, 5, 0]) == [0, 1, 2]


def test_what_is_left_out_is_said() -> None:
    assert left_out(12, 12) == ""
    assert left_out(1300, 12) == " Shown are the 12 classes with most test slices of 1,300."


@pytest.mark.parametrize("classes", [2, 5, 6, 12])
def test_columns_are_named_while_there_is_room_and_numbered_after(classes: int) -> None:
    names = [f"name {label}" for label in range(classes)]
    rows, columns = square_heads(names)
    if classes <= 5:
        assert rows == columns == names
    else:
        assert columns == [str(label + 1) for label in range(classes)]
        assert rows == [f"{column}: {name}" for column, name in zip(columns, names, strict=True)]


@pytest.mark.parametrize(("angle", "text"), [(None, "-"), (float("nan"), "-"), (12.34, "12.3°")])
def test_an_angle_that_is_not_there_is_a_dash(angle: float | None, text: str) -> None:
    assert degrees(angle) == text
