"""Names that are markup, formulas, escapes or of a script that the font lacks, on every page that shows them."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.data.index import SkippedSample, load_index
from hsadml_dist.evaluation.combine import combine
from hsadml_dist.report.comparison_page import render_comparison
from hsadml_dist.report.figure_text import can_draw
from hsadml_dist.report.neighbour_examples import ExampleImage, NeighbourExample
from hsadml_dist.report.page import escape_markdown
from hsadml_dist.report.run_report import render_model_card, render_run_report
from hsadml_dist.shards.card import card_page
from hsadml_dist.shards.contact_sheet import ContactStrip
from hsadml_dist.shards.leakage import LeakageReport
from hsadml_dist.shards.summary import summarise
from tests.evaluation.synthetic_evaluations import Study
from tests.report.report_samples import VERSIONS, ParsedPage, cases_of, full_result_of, metrics_of, sphere_of

NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</td></table><iframe src=//evil>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; &amp; <!-- ",
    "$\\frac$",
    "胶质瘤",
    "[link](javascript:alert(1)) | `code` ![x](//evil)",
    "a\nb\x1b[2J\u202egnp\0",
    "_hidden",
    "glioma [grade ii] [/]",
]


def hostile_result() -> dict[str, Any]:
    return full_result_of(len(NAMES)) | {"classes": NAMES, "model": NAMES[0], "loss": NAMES[1], "chosen_by": NAMES[2]}


def hostile_cases() -> list[NeighbourExample]:
    image_HW = cases_of(1)[0].query.image_HW
    shots = [ExampleImage(image_HW=image_HW, caption=name, same_class=True) for name in NAMES]
    return [NeighbourExample(title=shot.caption, query=shot, neighbours=shots[:3], is_correct=True) for shot in shots]


def check_page(text: str) -> ParsedPage:
    """Check that a page has no markup of a name, and return it."""
    page = ParsedPage(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "link", "a", "form"})
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/")
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    text.encode()
    return page


@pytest.fixture
def page() -> ParsedPage:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as one for each character that a font lacks
        text = render_run_report(
            NAMES[0], hostile_result(), metrics_of(), sphere_of(len(NAMES)), hostile_cases(), VERSIONS
        )
    return check_page(text)


def test_report_shows_hostile_names_as_text(page: ParsedPage) -> None:
    shown = {cell for row in page.rows for cell in row}
    for name in NAMES[:9]:
        assert any(" ".join(name.split()) in cell for cell in shown), name
    assert any(r"\x1b[2J\u202egnp\x00" in cell for cell in shown)


def test_report_names_the_classes_that_its_figures_number(page: ParsedPage) -> None:
    numbered = [name for name in NAMES if not can_draw(name)]
    assert numbered == ["胶质瘤"]
    assert page.prose.count("class 8: 胶质瘤") == 2, "with the confusion matrix and with the map"


def test_report_of_ordinary_names_numbers_no_class() -> None:
    text = render_run_report("a", full_result_of(), metrics_of(), sphere_of())
    assert "Numbered in the figure" not in text


def test_name_that_is_not_utf8_can_be_written() -> None:
    result = full_result_of() | {"classes": ["a\udcff", "b", "c"]}
    for text in (
        render_run_report("run\udcff", result, metrics_of(), sphere_of()),
        render_model_card("run\udcff", result, VERSIONS),
    ):
        text.encode()
        assert "\\udcff" in text


def test_model_card_shows_hostile_names_as_text() -> None:
    card = render_model_card(NAMES[0], hostile_result(), VERSIONS)
    plain = re.sub(r"\\.", "", card.replace(f"`{'ab' * 32}`", ""))  # without escaped characters
    assert not re.search(r"[<$`\]]", plain)
    assert not re.search("[\0-\x08\x0b-\x1f\u202a-\u202e]", card)
    for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_comparison_shows_hostile_names_as_text() -> None:
    study = Study(lead={"softmax": 0.0, "sphereface": 0.05})
    combined = combine(list(study.all({"person": 5, "slice": 1}))).to_dict()
    hostile = json.loads(json.dumps(combined).replace('"sphereface"', json.dumps(f"{NAMES[6]} {NAMES[0]} {NAMES[7]}")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = check_page(render_comparison(hostile | {"classes": NAMES, "model": NAMES[1]}))
    assert any("$\\frac$" in cell and "<script>" in cell for row in page.rows for cell in row)


def test_dataset_card_shows_hostile_names_as_text(tiny_shards: Path) -> None:
    summary = summarise(load_index(tiny_shards))
    group = summary.total
    by_class = dict.fromkeys(NAMES, 1)
    hostile = dataclasses.replace(
        summary,
        source=NAMES[0],
        classes=dict.fromkeys(NAMES, group),
        folds={fold: dataclasses.replace(count, by_class=by_class) for fold, count in summary.folds.items()},
        total=dataclasses.replace(group, by_class=by_class),
        skipped=tuple(SkippedSample(where=name, reason=name) for name in NAMES),
    )
    strips = [ContactStrip(class_name=name, uri="data:image/png;base64,", alt=name) for name in NAMES]
    leakage = LeakageReport(accuracy={"person": 0.5}, slices=40)
    page = check_page(card_page(hostile, leakage, strips))
    assert "<script>alert(1)</script>" in page.prose


def test_escape_markdown_escapes_formulas_and_control_characters() -> None:
    assert escape_markdown("$x$ \x1b") == r"\$x\$ \\x1b"
