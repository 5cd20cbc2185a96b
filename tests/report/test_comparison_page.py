"""The page that compares runs: self-contained, complete and escaped."""

from __future__ import annotations

import base64
import copy
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hsadml_dist.evaluation.combine import combine
from hsadml_dist.report.comparison_page import render_comparison, write_comparison_page
from tests.evaluation.synthetic_evaluations import Study
from tests.report.report_samples import ParsedPage

LIMIT = 2_000_000
EVEN = Study(lead={"softmax": 0.0, "sphereface": 0.05})
THREE = Study(lead={"softmax": 0.0, "cosface": 0.4, "sphereface": 2.0})
TITLES = {"softmax": "softmax", "sphereface": "SphereFace"}


@pytest.fixture(scope="module")
def even() -> dict[str, Any]:
    return combine(list(EVEN.all({"person": 5, "slice": 1}))).to_dict()


@pytest.fixture(scope="module")
def even_text(even: dict[str, Any]) -> str:
    return render_comparison(even)


@pytest.fixture(scope="module")
def three_text() -> str:
    runs = THREE.all({"person": 5, "exam": 1, "slice": 2}, seeds=2)
    return render_comparison(combine(list(runs)).to_dict())


def test_comparison_loads_nothing_and_each_image_has_text_and_a_table(three_text: str) -> None:
    page = ParsedPage(three_text)
    assert len(three_text.encode()) < LIMIT
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a"}
    assert not re.search(r"url\(|@import|https?://", three_text)
    images = page.all("img")
    assert len(images) == 5
    for image in images:
        assert len(image["alt"] or "") > 40
        ElementTree.fromstring(base64.b64decode((image["src"] or "").removeprefix("data:image/svg+xml;base64,")))
    order = [tag for tag, _ in page.tags if tag in ("img", "table")]
    assert all(order[place + 1] == "table" for place, tag in enumerate(order) if tag == "img")


def test_comparison_tables_are_rectangular(three_text: str) -> None:
    tables = re.findall(r"<table.*?</table>", three_text, re.DOTALL)
    assert len(tables) == 9
    for table in tables:
        assert len({len(row) for row in ParsedPage(table).rows}) == 1, table[:200]


def test_comparison_is_reproducible(even: dict[str, Any], even_text: str, tmp_path: Path) -> None:
    assert write_comparison_page(tmp_path, even).read_text() == even_text


def test_comparison_accuracy_table_holds_every_pool(even: dict[str, Any], even_text: str) -> None:
    page = ParsedPage(even_text)
    for pool in even["pools"]:
        knn, raw = pool["methods"]["knn"], pool["methods"]["raw_pixels"]
        unit = {"person": "patient"}.get(pool["split_unit"], pool["split_unit"])
        row = page.row(unit, TITLES[pool["loss"]])
        assert row[2].startswith(f"{100 * knn['accuracy']:.1f} ({100 * knn['interval'][0]:.1f}\N{EN DASH}")
        assert row[4].startswith(f"{100 * raw['accuracy']:.1f} (")
        assert row[5:] == [f"{len(pool['folds'])} of 5", str(pool["slices"]), str(pool["persons"])]


def test_comparison_difference_tables_hold_the_tests(even: dict[str, Any], even_text: str) -> None:
    (pair,) = [
        one
        for one in even["comparisons"]
        if (one["kind"], one["first"]["split_unit"], one["first"]["method"]) == ("losses", "person", "knn")
    ]
    rows = [row for row in ParsedPage(even_text).rows if row[:2] == ["SphereFace \N{MINUS SIGN} softmax", "patient"]]
    assert rows[0][-1].startswith(f"{pair['test']['units_for']} / ")
    assert rows[1][-2] == f"{pair['test']['unclustered_misleading']['statistic']:.2f}"
    leak = ParsedPage(even_text).row("slice against patient", "SphereFace")
    assert leak[2] < leak[3] and leak[4].startswith("+")


def from_source(combined: dict[str, Any], source: str | None) -> dict[str, Any]:
    return combined | {"pools": [pool | {"source": source} for pool in combined["pools"]]}


def test_comparison_quotes_the_paper_for_its_images_only(even: dict[str, Any]) -> None:
    papers = from_source(even, "figshare")
    page = ParsedPage(render_comparison(papers))
    assert page.row("quoted", "SphereFace")[2] == "98.69"
    assert page.row("quoted", "softmax")[2:7] == ["98.47", "-", "-", "-", "-"]
    for other in (papers | {"classes": ["a", "b", "c"]}, from_source(even, "phantom"), from_source(even, None)):
        text = render_comparison(other)
        assert "98.69" not in text and "Verma" not in text


def test_comparison_says_that_patients_are_generated(even: dict[str, Any]) -> None:
    assert "Generated patients" in render_comparison(from_source(even, "phantom"))
    assert "Generated patients" not in render_comparison(from_source(even, "table"))


def test_comparison_has_a_table_of_seeds_if_there_are_several(even_text: str, three_text: str) -> None:
    assert ["seed 1"] in [row[:1] for row in ParsedPage(three_text).rows]
    assert ["seed 0"] not in [row[:1] for row in ParsedPage(even_text).rows]


def test_comparison_escapes_run_names(even: dict[str, Any]) -> None:
    odd = copy.deepcopy(even)
    odd["sources"][0]["name"] = "<b>run"
    text = render_comparison(odd)
    assert "<b>" not in text and "&lt;b&gt;run" in text


def test_comparison_of_one_run_without_controls_is_rendered() -> None:
    one = combine([EVEN.run("person", "softmax", 0)]).to_dict()
    for pool in one["pools"]:
        del pool["methods"]["raw_pixels"]
    page = ParsedPage(render_comparison(one | {"comparisons": []}))
    assert page.row("patient", "softmax")[4] == "-"
    assert len(page.all("img")) == 3


def test_comparison_distinguishes_two_shards_of_one_split() -> None:
    both = [Study(lead={"softmax": 0.0}, seed=seed).run("person", "softmax", 0) for seed in (0, 1)]
    page = ParsedPage(render_comparison(combine(both).to_dict()))
    names = {f"patient ({run.result['data_digest'][:8]})" for run in both}
    assert names <= {row[0] for row in page.rows}
