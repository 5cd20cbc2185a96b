"""Forest plots: positions, styles and alternative text."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hsadml_dist.report.forest_plot import (
    CONTROL_STYLE,
    ForestPoint,
    ForestRow,
    draw_accuracies,
    draw_differences,
    plot_rows,
    row_positions,
    series_styles,
)
from hsadml_dist.report.page import EmbeddedImage

ROWS = [
    ForestRow(name="a", group="one", points=[ForestPoint(series="k-NN", value=0.8, interval=(0.7, 0.9))]),
    ForestRow(
        name="b",
        group="one",
        points=[
            ForestPoint(series="k-NN", value=0.6, interval=None),
            ForestPoint(series="raw", value=0.5, interval=(0.4, 0.6), is_control=True),
        ],
    ),
    ForestRow(name="c", group="two", points=[ForestPoint(series="k-NN", value=0.7, interval=(0.7, 0.7))]),
]


def test_row_positions_descend_with_a_gap_between_groups() -> None:
    height, places = row_positions(ROWS)
    assert places == sorted(places) and height > places[-1]
    assert places[2] - places[1] > places[1] - places[0]


def test_series_styles_reserve_one_for_the_control() -> None:
    for rows in (ROWS, ROWS[::-1]):
        styles = series_styles(rows)
        assert styles["raw"] == CONTROL_STYLE != styles["k-NN"]
    many = [
        ForestRow(name="x", points=[ForestPoint(series=str(number), value=0.5, interval=None) for number in range(5)])
    ]
    styles = series_styles(many)
    assert len(set(styles.values())) == 5 and CONTROL_STYLE not in styles.values()


def test_plot_rows_draws_each_value_and_interval() -> None:
    _, axes = plot_rows(ROWS)
    points = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    spans = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert points == [0.8, 0.6, 0.5, 0.7]
    assert spans == [(0.7, 0.9), (0.4, 0.6), (0.7, 0.7)]
    assert [text.get_text() for text in axes.texts] == ["one", "two"]


@pytest.mark.parametrize("draw", [draw_accuracies, draw_differences])
def test_forest_plot_names_every_row_and_is_reproducible(draw: Callable[..., EmbeddedImage]) -> None:
    first, second = draw(ROWS, title="Shown"), draw(ROWS, title="Shown")
    assert first == second
    assert first.alt.startswith("Shown") and all(row.name in first.alt for row in ROWS)


def test_forest_plot_alternative_text_holds_the_values() -> None:
    assert "one b: k-NN 60.0%, raw 50.0%" in draw_accuracies(ROWS, title="Shown").alt
    lead = [ForestRow(name="a", points=[ForestPoint(series="difference", value=-0.012, interval=(-0.03, 0.01))])]
    assert draw_differences(lead, title="Lead").alt == "Lead, in percentage points: a -1.2."
