"""The model card: Markdown that no name can break, every figure with its unit, persons and interval."""

from __future__ import annotations

import re

import pytest

from hsadml_dist.report.model_card import escape_markdown, model_card
from tests.report.report_samples import VERSIONS, full_result_of, persons_of, result_of

SECTIONS = [
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
]


@pytest.fixture(scope="module")
def card() -> str:
    return model_card("run | <b>\n# no heading", full_result_of(), VERSIONS)


def test_the_sections_are_those_of_a_model_card(card: str) -> None:
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
    assert "**Research use only.**" in card.split("##", maxsplit=1)[0]


def test_no_name_breaks_the_text(card: str) -> None:
    assert re.findall(r"^# (.*)$", card, re.MULTILINE) == [r"Model card: run \| \<b\> \# no heading"]
    assert not re.search(r"(?<!\\)<", card)
    assert escape_markdown("a_b*c`d|e") == r"a\_b\*c\`d\|e"


def test_every_table_is_rectangular_and_every_figure_has_its_circumstances(card: str) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    figures = blocks[0].splitlines()
    assert "| k-NN accuracy (k = 1) | 81.2% | 73.1% to 88.3% | person | 40 |" in figures
    assert "| low-level features (control) | 65.2% | 55.1% to 72.3% | person | 40 |" in figures
    assert "| majority of a person's slices | 87.5% | 73.9% to 94.5% | person | 40 |" in figures
    assert "| new method | 78.0% | 70.0% to 95.0% | 77.0% |" in blocks[1].splitlines()
    assert r"| \<class 0\> | 10 | 80.0% |" in blocks[2].splitlines()


def test_persons_as_classes_are_counted_and_not_listed() -> None:
    card = model_card("run", persons_of(), {})
    assert "- Classes: 300 persons, each a class of its own, named by keyed hashes" in card
    assert persons_of()["classes"][0] not in card
    assert "keep them as you keep the data" in card


def test_remarks_and_open_questions_are_in_it(card: str) -> None:
    split = model_card("run", result_of() | {"split_unit": "slice"}, {})
    assert "slices of one person may stand in training and test" in split
    assert card.count("**For the author.**") >= 6
    assert "not recorded" not in split and "Software" not in split


def test_many_classes_and_no_optional_part_are_no_error() -> None:
    many = model_card("run", result_of(300), {})
    assert "and 276 more" in many
    assert len(many) < 20_000
    assert re.findall(r"^## (.*)$", many, re.MULTILINE) == SECTIONS
