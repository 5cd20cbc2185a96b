"""A bar of outcomes: every number in words, small as a file."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

import pytest

from hsadml_dist.report.plot_style import outcome_bar

COUNTS = {"right": 1140, "undecided": 41, "wrong": 65}


def test_all_numbers_are_in_the_words() -> None:
    picture = outcome_bar(COUNTS, "persons", "their slices")
    assert picture.alt == "A bar of 1246 persons by their slices: 1140 right, 41 undecided, 65 wrong."


@pytest.mark.parametrize("counts", [COUNTS, {"right": 0, "undecided": 0, "wrong": 0}])
def test_it_is_a_small_drawing(counts: dict[str, int]) -> None:
    drawing = base64.b64decode(outcome_bar(counts, "persons", "their slices").uri.partition(",")[2])
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert len(drawing) < 40_000
