"""The model card: valid Markdown with any names, and the circumstances of every figure."""

from __future__ import annotations

import re

import pytest

from hsadml_dist.report.run_report import render_model_card
from tests.report.report_samples import VERSIONS, full_result_of, patients_result_of, result_of

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
FOR_AUTHOR = "**For the author.**"


@pytest.fixture(scope="module")
def card() -> str:
    return render_model_card("run | <b>\n# no heading", full_result_of(), VERSIONS)


def test_model_card_has_the_standard_sections(card: str) -> None:
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
    assert "**Research use only.**" in card.split("##", maxsplit=1)[0]


def test_model_card_lists_values_on_the_line_of_their_bullet(card: str) -> None:
    lines = card.splitlines()
    assert r"- Settings: data.image\_size 112; model.embedding\_dim 64; loss.margin 4; optimiser \<adamw\>" in lines
    assert r"- Classes (3): \<class 0\>, \<class 1\>, \<class 2\>" in lines


def test_model_card_escapes_names(card: str) -> None:
    assert re.findall(r"^# (.*)$", card, re.MULTILINE) == [r"Model card: run \| \<b\> \# no heading"]
    assert not re.search(r"(?<!\\)<", card)


def test_model_card_tables_are_rectangular_and_state_split_and_patients(card: str) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    metrics = blocks[0].splitlines()
    assert "| k-NN accuracy (k = 1) | 81.2% | 73.1% to 88.3% | patient | 40 |" in metrics
    assert "| low-level features (control) | 65.2% | 55.1% to 72.3% | patient | 40 |" in metrics
    assert metrics[-1].endswith("| 87.5% | 73.9% to 94.5% | patient | 40 |")
    assert "| new method | 78.0% | 70.0% to 95.0% | 77.0% |" in blocks[1].splitlines()
    assert r"| \<class 0\> | 10 | 80.0% |" in blocks[2].splitlines()


def test_model_card_counts_patients_as_classes_without_listing_them() -> None:
    card = render_model_card("run", patients_result_of(), {})
    assert "300 patients" in card
    assert patients_result_of()["classes"][0] not in card


def test_model_card_holds_remarks_and_open_questions(card: str) -> None:
    split = render_model_card("run", result_of() | {"split_unit": "slice"}, {})
    caveats, split_caveats = (text.split("## Caveats")[1].count("\n- ") for text in (card, split))
    assert split_caveats == caveats + 1
    assert card.count(FOR_AUTHOR) >= 6
    assert "torch 2.13.0" in card and "torch" not in split


def test_model_card_of_many_classes_without_optional_parts_is_short() -> None:
    card = render_model_card("run", result_of(300), {})
    assert "276 more" in card
    assert len(card) < 20_000
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
