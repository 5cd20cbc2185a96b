"""Figures of a run's report."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

import pytest

from hsadml_dist.report.run_figures import draw_outcomes

COUNTS = {"correct": 1140, "tied": 41, "incorrect": 65}


def test_outcomes_are_all_in_the_alternative_text() -> None:
    alt = draw_outcomes(COUNTS, "patients", "their slices").alt
    for part in ("1246 patients", "their slices", "1140 correct", "41 tied", "65 incorrect"):
        assert part in alt


@pytest.mark.parametrize("counts", [COUNTS, dict.fromkeys(COUNTS, 0)])
def test_outcomes_are_a_small_svg(counts: dict[str, int]) -> None:
    drawing = base64.b64decode(draw_outcomes(counts, "patients", "their slices").uri.partition(",")[2])
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert len(drawing) < 40_000
