"""The page on several runs: whole, self-contained, and no bolder than its numbers."""

from __future__ import annotations

import base64
import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hsadml_dist.evaluation.combine import combine
from hsadml_dist.report.comparison_page import render_comparison, write_comparison_page
from tests.evaluation.synthetic_evaluations import Study

LIMIT = 2_000_000
EVEN = Study(lead={"softmax": 0.0, "sphereface": 0.05})
THREE = Study(lead={"softmax": 0.0, "cosface": 0.4, "sphereface": 2.0})


@pytest.fixture(scope="module")
def even() -> dict[str, Any]:
    return combine(list(EVEN.all({"person": 5, "slice": 1})), resamples=300).to_dict()


@pytest.fixture(scope="module")
def three() -> dict[str, Any]:
    return combine(list(THREE.all({"person": 5, "exam": 1, "slice": 2}, seeds=2)), resamples=300).to_dict()


@pytest.fixture(scope="module")
def even_text(even: dict[str, Any]) -> str:
    return render_comparison(even)


@pytest.fixture(scope="module")
def three_text(three: dict[str, Any]) -> str:
    return render_comparison(three)


class ParsedComparison(HTMLParser):
    """Collects tags, and the words of each table cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def row(self, *start: str) -> list[str]:
        (found,) = [row for row in self.rows if tuple(row[: len(start)]) == start]
        return [cell.strip() for cell in found]


def test_nothing_is_fetched_and_each_picture_has_words_and_a_table(three_text: str) -> None:
    text, page = three_text, ParsedComparison(three_text)
    assert len(text.encode()) < LIMIT
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a"}
    assert not re.search(r"url\(|@import|https?://", text)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 5
    for picture in pictures:
        assert len(picture["alt"] or "") > 40
        ElementTree.fromstring(base64.b64decode((picture["src"] or "").removeprefix("data:image/svg+xml;base64,")))
    order = [tag for tag, _ in page.tags if tag in ("img", "table")]
    assert all(order[place + 1] == "table" for place, tag in enumerate(order) if tag == "img")


def test_the_same_numbers_give_the_same_page(even: dict[str, Any], even_text: str, tmp_path: Path) -> None:
    assert write_comparison_page(tmp_path, even).read_text() == even_text


def test_the_tables_hold_the_figures(even: dict[str, Any], even_text: str) -> None:
    page = ParsedComparison(even_text)
    for pool in even["pools"]:
        knn, raw = pool["methods"]["knn"], pool["methods"]["raw_pixels"]
        row = page.row(pool["split_unit"], {"softmax": "softmax", "sphereface": "SphereFace"}[pool["loss"]])
        assert row[2].startswith(f"{100 * knn['accuracy']:.1f} ({100 * knn['interval'][0]:.1f}\N{EN DASH}")
        assert row[4].startswith(f"{100 * raw['accuracy']:.1f} (")
        assert row[5:] == [f"{len(pool['folds'])} of 5", str(pool["slices"]), str(pool["persons"])]
    (pair,) = [
        one
        for one in even["comparisons"]
        if (one["kind"], one["first"]["split_unit"], one["first"]["method"]) == ("losses", "person", "knn")
    ]
    persons = f"{pair['test']['units_for']} / "
    rows = [row for row in page.rows if row[0].strip() == "SphereFace \N{MINUS SIGN} softmax" and row[1] == "person"]
    assert rows[0][-1].startswith(persons)
    assert rows[1][-2] == f"{pair['test']['unclustered_misleading']['statistic']:.2f}"
    leak = page.row("slice against person", "SphereFace")
    assert leak[2] < leak[3] and leak[4].startswith("+")


def test_the_papers_figures_are_quoted_for_its_classes_alone(even: dict[str, Any], even_text: str) -> None:
    page = ParsedComparison(even_text)
    assert page.row("quoted", "SphereFace")[2] == "98.69"
    assert page.row("quoted", "softmax")[2:7] == ["98.47", "-", "-", "-", "-"]
    assert "How they split them is not known" in page.words.replace("\n", " ")


def test_seeds_have_a_table_where_there_are_several(even_text: str, three_text: str) -> None:
    assert "Accuracy seed by seed" in three_text and "Accuracy seed by seed" not in even_text


def test_names_from_outside_are_escaped_and_other_classes_have_no_quotation(even: dict[str, Any]) -> None:
    odd = copy.deepcopy(even)
    odd["sources"][0]["name"] = "<b>run"
    text = render_comparison(odd | {"classes": ["a", "b", "c"]})
    assert "<b>" not in text and "&lt;b&gt;run" in text
    assert "98.69" not in text and "Verma" not in text


def test_one_run_alone_and_runs_without_controls_make_a_page() -> None:
    one = combine([EVEN.run("person", "softmax", 0)], resamples=50).to_dict()
    assert ParsedComparison(render_comparison(one)).words.count("The same slices, split in two ways") == 0
    for pool in one["pools"]:
        del pool["methods"]["raw_pixels"]
    page = ParsedComparison(render_comparison(one | {"comparisons": []}))
    assert "Differences" not in page.words
    assert page.row("person", "softmax")[4] == "-"


def test_two_shards_of_one_split_are_told_apart() -> None:
    both = [Study(lead={"softmax": 0.0}, seed=seed).run("person", "softmax", 0) for seed in (0, 1)]
    page = ParsedComparison(render_comparison(combine(both, resamples=50).to_dict()))
    names = {f"person ({run.result['data_digest'][:8]})" for run in both}
    assert names <= {row[0].strip() for row in page.rows}
