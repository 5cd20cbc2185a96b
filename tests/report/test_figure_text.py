"""Names in figures: never formulas, never a warning, always drawn."""

from __future__ import annotations

import warnings

import pytest
from matplotlib.figure import Figure

from hsadml_dist.report.figure_text import MAX_CHARACTERS, can_draw, class_labels, figure_text

FORMULAS = ("$\\frac$", "$", "$$", "a$b$c", r"\$\frac$", "${", "$x^$ and $y$")
FOREIGN = ("胶质瘤", "グリオーマ", "🧠", "\U0001f9e0 tumour")


def drawn(text: str) -> None:
    """Draw a text; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = Figure()
        figure.text(0.5, 0.5, text)
        figure.savefig("/dev/null", format="svg")


@pytest.mark.parametrize("name", [*FORMULAS, *FOREIGN, "a\n\x1b\0\udcff", "_hidden", "%", "{}", "x" * 1000, ""])
def test_any_name_is_drawn_without_a_warning(name: str) -> None:
    for text in (figure_text(name), *class_labels([name])):
        drawn(text)
        assert len(text.replace(r"\$", "$").strip()) <= MAX_CHARACTERS


@pytest.mark.parametrize("name", FORMULAS)
def test_formula_is_shown_as_it_is_written(name: str) -> None:
    figure = Figure()
    text = figure.text(0.5, 0.5, figure_text(name))
    shown, is_formula = text._preprocess_math(text.get_text())
    assert (shown, is_formula) == (name, False)


def test_classes_that_cannot_be_drawn_are_numbered() -> None:
    assert class_labels(["glioma", "胶质瘤", "Größe", "🧠"]) == ["glioma", "class 2", "Größe", "class 4"]
    assert [can_draw(name) for name in ("glioma", "Größe", "胶质瘤", "a\n")] == [True, True, False, True]


def test_text_that_cannot_be_drawn_keeps_the_rest() -> None:
    assert figure_text("split by 瘤") == "split by ?"


def test_label_of_a_legend_does_not_begin_with_an_underscore() -> None:
    assert not figure_text("_glioma").startswith("_")
