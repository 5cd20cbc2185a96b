"""What the figures draw: each mark where it belongs, controls told apart, words for those who see none of it."""

from __future__ import annotations

import pytest

from hsadml_dist.report import forest_plot as combined_figures
from hsadml_dist.report.forest_plot import CONTROL_STYLE, ForestPoint, ForestRow, differences, forest

ROWS = [
    ForestRow(name="a", group="one", marks=[ForestPoint(series="k-NN", value=0.8, interval=(0.7, 0.9))]),
    ForestRow(
        name="b",
        group="one",
        marks=[
            ForestPoint(series="k-NN", value=0.6, interval=None),
            ForestPoint(series="raw", value=0.5, interval=(0.4, 0.6), is_control=True),
        ],
    ),
    ForestRow(name="c", group="two", marks=[ForestPoint(series="k-NN", value=0.7, interval=(0.7, 0.7))]),
]


def test_rows_stand_below_one_another_and_groups_apart() -> None:
    height, places = combined_figures._heights(ROWS)
    assert places == sorted(places) and height > places[-1]
    assert places[2] - places[1] > places[1] - places[0]


def test_the_control_has_its_own_look_whatever_comes_first() -> None:
    for rows in (ROWS, ROWS[::-1]):
        looks = combined_figures._looks(rows)
        assert looks["raw"] == CONTROL_STYLE != looks["k-NN"]
    many = [
        ForestRow(name="x", marks=[ForestPoint(series=str(number), value=0.5, interval=None) for number in range(5)])
    ]
    looks = combined_figures._looks(many)
    assert len(set(looks.values())) == 5 and CONTROL_STYLE not in looks.values()


def test_each_value_and_each_interval_is_drawn() -> None:
    _, axes = combined_figures._frame(ROWS)
    points = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    spans = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert points == [0.8, 0.6, 0.5, 0.7]
    assert spans == [(0.7, 0.9), (0.4, 0.6), (0.7, 0.7)]
    assert [text.get_text() for text in axes.texts] == ["one", "two"]


@pytest.mark.parametrize("draw", [forest, differences])
def test_the_words_name_every_row_and_the_bytes_repeat(draw) -> None:
    first, second = draw(ROWS, what="Shown"), draw(ROWS, what="Shown")
    assert first == second
    assert first.alt.startswith("Shown") and all(row.name in first.alt for row in ROWS)


def test_words_hold_the_values() -> None:
    assert "one b: k-NN 60.0%, raw 50.0%" in forest(ROWS, what="Shown").alt
    lead = [ForestRow(name="a", marks=[ForestPoint(series="difference", value=-0.012, interval=(-0.03, 0.01))])]
    assert differences(lead, what="Lead").alt == "Lead, in percentage points: a -1.2."
