"""The page of a run: self-contained, complete and escaped."""

from __future__ import annotations

import base64
import copy
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from hsadml_dist.report.run_report import class_headings, largest_classes, render_run_report, write_run_report
from tests.report.report_samples import (
    VERSIONS,
    ParsedPage,
    cases_of,
    full_result_of,
    metrics_of,
    patients_result_of,
    result_of,
    sphere_of,
)

LIMIT = 2_000_000
OPTIONAL = ("low_level_knn", "methods", "person_vote", "calibration", "geometry", "recipe")


@pytest.fixture(scope="module")
def text() -> str:
    return render_run_report("ce_mri <b>", result_of(), metrics_of(), sphere_of())


@pytest.fixture(scope="module")
def full() -> str:
    return render_run_report("ce_mri <b>", full_result_of(), metrics_of(), sphere_of(), cases_of(), VERSIONS)


def test_page_loads_nothing_and_runs_no_script(full: str) -> None:
    page = ParsedPage(full)
    assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("a")
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href", "xlink:href") or (value or "").startswith("data:image/")
    assert not re.search(r"url\(|@import|https?://", full)


def test_page_images_are_valid_and_have_alternative_text(full: str) -> None:
    images = ParsedPage(full).all("img")
    assert len({image["alt"] for image in images}) == len(images) == 8 + 3 * 4
    for image in images:
        kind, _, content = (image["src"] or "").partition(",")
        data = base64.b64decode(content, validate=True)
        if kind == "data:image/png;base64":
            thumbnail = Image.open(io.BytesIO(data))
            assert (thumbnail.mode, thumbnail.size) == ("L", (128, 128))
            continue
        assert len(image["alt"] or "") > 40
        drawing = ElementTree.fromstring(data)
        assert drawing.tag.endswith("svg")
        links = [href for element in drawing.iter() for name, href in element.items() if name.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)


def test_page_sections_have_an_image_first_and_a_table_last(full: str) -> None:
    kinds = [tag for tag, _ in ParsedPage(full).tags if tag in ("h2", "img", "table")]
    sections = " ".join(kinds).split("h2")[1:]
    assert len(sections) == 11
    for section in sections[:-2]:
        assert section.split()[0] == "img" and section.split()[-1] == "table"
    # The CLAIM checklist and the provenance have tables only.
    assert sections[-2].split() == ["table"] * 8
    assert sections[-1].split() == ["table"]
    assert len(ParsedPage(full).all("caption")) == kinds.count("table")


def test_page_tables_are_rectangular(full: str) -> None:
    tables = re.findall(r"<table.*?</table>", full, re.DOTALL)
    assert len(tables) > 15
    for table in tables:
        assert len({len(row) for row in ParsedPage(table).rows}) == 1, table[:200]


def test_page_of_first_schema_has_the_sections_it_has_numbers_for(text: str) -> None:
    page = ParsedPage(text)
    assert len(page.all("img")) == 4
    for part in ("81.2%", "73.1% to 88.3%", "79.8%", "82.4%", "68.8%", "Research use only", "Not a medical device"):
        assert part in page.prose
    assert "300 steps in 2 attempts" in page.prose
    assert "low-level" not in page.prose and "Calibration" not in page.prose


def test_page_headline_holds_accuracy_interval_sample_and_controls(full: str) -> None:
    (headline,) = re.findall(r'<p class="headline">(.*?)</p>', full, re.DOTALL)
    for part in ("81.2%", "30 test slices", "40 patients", "1,633", "73.1% to 88.3%", "68.8%", "65.2%", "by patient"):
        assert part in headline, part


@pytest.mark.parametrize(
    "row",
    [
        ["low-level features (control)", "65.2%", "55.1% to 72.3%"],
        ["support vector machine", "84.0%", "70.0% to 95.0%", "83.0%"],
        ["new method", "78.0%"],
        ["correct", "35"],
        ["tied", "2"],
        ["incorrect", "3"],
        ["40% to 60%", "10", "55.0%", "60.0%", "+5.0 points"],
        ["80% to 100%", "20", "93.0%", "90.0%", "-3.0 points"],
        ["expected calibration error", "0.037"],
        ["Brier score", "0.123"],
        ["negative log-likelihood", "0.432"],
        ["<class 1>", "10", "31.3°", "84.5°", "40.2°", "-"],
        ["all", "30", "31.3°", "84.5°", "40.2°", "86.3°"],
        ["<class 0>", "-", "118.5°", "118.5°"],
        # 120 degrees are 2.0944 radians: their logarithm, 1 / 2.0944 and its square.
        ["energy s0", "-0.727", "-0.739"],
        ["energy s1", "0.483", "0.477"],
        ["energy s2", "0.234", "0.228"],
        ["loss.margin", "4"],
        ["weights", "step-00000600.attempt-0001: step 600, attempt 1"],
        ["software of the evaluation", "Python 3.11.7, torch 2.13.0"],
    ],
)
def test_page_tables_hold_the_numbers(full: str, row: list[str]) -> None:
    assert ParsedPage(full).row(*row)


def test_page_lists_controls_last_among_methods(full: str) -> None:
    names = [row[0] for row in ParsedPage(full).rows]
    places = [
        len(names) - 1 - names[::-1].index(name) for name in ("naive Bayes", "new method", "raw pixels (control)")
    ]
    assert places == sorted(places)


def test_page_marks_correct_and_incorrect_by_word_and_shape(full: str) -> None:
    page = ParsedPage(full)
    for number, outcome in ((1, "incorrect"), (2, "correct"), (3, "incorrect")):
        assert f"Example {number}: {outcome}." in page.prose
    shapes = [str(attributes["class"]) for attributes in page.all("svg")]
    # One mark per example and one per neighbour.
    assert len(shapes) == 3 * (1 + 3)
    for shape, word in (("mark", "same class"), ("mark cross", "other class")):
        examples = 1 if shape == "mark" else 2
        assert shapes.count(shape) == examples + full.count(f"<b>{word}</b>")


def test_page_escapes_names(full: str) -> None:
    for raw in ("<b>.", "ce_mri <b>", "<class", "<glioma", "<query", "<adamw"):
        assert raw not in full.replace("<b>query</b>", "")
    for escaped in ("ce_mri &lt;b&gt;", "&lt;class 0&gt;", "&lt;glioma 1&gt;", "&lt;query&gt;", "&lt;adamw"):
        assert escaped in full


def test_page_is_reproducible(full: str) -> None:
    again = render_run_report("ce_mri <b>", full_result_of(), metrics_of(), sphere_of(), cases_of(), VERSIONS)
    assert again == full


def test_page_of_large_result_stays_under_the_limit_and_states_what_is_left_out() -> None:
    many = render_run_report(
        "many", full_result_of(300), metrics_of(100_000), sphere_of(300, 30_000), cases_of(12, 300)
    )
    assert len(many.encode()) < LIMIT
    prose = ParsedPage(many).prose
    assert "12 classes with most test slices of 300" in prose
    assert "first 10 of 12" in prose


@pytest.mark.parametrize("classes", [12, 13, 300])
def test_page_above_twelve_classes_lists_confused_pairs_instead_of_matrices(classes: int) -> None:
    page = ParsedPage(render_run_report("run", full_result_of(classes), metrics_of(), sphere_of(classes, 900)))
    heads = [row[:2] for row in page.rows]
    assert (["true class", "1"] in heads) == (["centre", "1"] in heads) == (classes == 12)
    assert (["true class", "confused with"] in heads) == (classes > 12)
    if classes > 12:
        assert page.row("<class 0>", "<class 1>", "2")
        assert page.row("all slices correct", "1", f"{1 / classes:.1%}")
        assert page.row("nearest two", "102.2°")
        assert page.row("<class 0>", "<class 2>", "103.2°")
        assert ("12 pairs" if classes == 13 else "20 of 299 pairs") in page.prose


def test_page_on_patients_as_classes_is_small_and_states_it_first() -> None:
    text = render_run_report(
        "run", patients_result_of(), metrics_of(100_000), sphere_of(300, 30_000), cases_of(12, 300)
    )
    assert len(text.encode()) < LIMIT
    opening = ParsedPage(text).prose.split("Accuracy")[0]
    for part in ("same patient", "300 patients", "2 slices"):
        assert part in opening, part


@pytest.mark.parametrize("classes", [1, 2])
def test_page_of_one_or_two_classes_is_rendered(classes: int) -> None:
    result = full_result_of(classes)
    if classes == 1:
        result["geometry"]["energy"] = None
        result["geometry"]["histogram"]["other_centre"] = [0] * 90
    page = ParsedPage(render_run_report("few", result, [], sphere_of(classes, dim=3), cases_of(1)))
    assert "3 dimensions" in page.prose
    assert ("180.0°" in page.prose) == (classes == 2)


@pytest.mark.parametrize("part", OPTIONAL)
def test_page_leaves_out_missing_optional_parts(part: str, full: str) -> None:
    without = {name: value for name, value in full_result_of().items() if name != part}
    page = ParsedPage(render_run_report("ce_mri <b>", without, metrics_of(), sphere_of(), cases_of(), VERSIONS))
    assert len(page.rows) < len(ParsedPage(full).rows) or part == "recipe"
    assert len(page.all("img")) == len(ParsedPage(full).all("img")) - (part not in ("low_level_knn", "recipe"))


def test_page_treats_null_parts_as_missing(text: str) -> None:
    null = dict.fromkeys(OPTIONAL)
    assert render_run_report("ce_mri <b>", result_of() | null, metrics_of(), sphere_of()) == text


def test_page_without_confusion_matrix_has_no_section_for_it() -> None:
    page = ParsedPage(render_run_report("run", result_of() | {"confusion": None}, [], None))
    assert len(page.all("img")) == 1


@pytest.mark.parametrize(
    ("where", "key", "value", "fact"),
    [("", "split_unit", "slice", "split by slice"), ("intervals", "caution", "few_units", "only 40 patients")],
)
def test_page_starts_with_the_remarks(where: str, key: str, value: object, fact: str) -> None:
    result: dict[str, Any] = copy.deepcopy(result_of())
    (result[where] if where else result)[key] = value
    text = render_run_report("run", result, [], None)
    (remarks,) = re.findall(r'<ul class="remarks".*?</ul>', text, re.DOTALL)
    assert fact in remarks and text.index(remarks) < text.index("<h2>")


def test_page_states_cases_of_patients_with_two_classes() -> None:
    result = full_result_of()
    result["person_vote"] = result["person_vote"] | {"persons": 38}
    page = ParsedPage(render_run_report("run", result, [], None)).prose
    assert "38 patients" in page and "40 cases" in page


def test_page_states_a_sample_of_slices_for_angles() -> None:
    result = full_result_of()
    assert "sampled" not in ParsedPage(render_run_report("run", result, [], None)).prose
    result["geometry"]["paired"] = 20
    assert "20 slices, sampled" in ParsedPage(render_run_report("run", result, [], None)).prose


def test_page_counts_skipped_steps_and_draws_the_same_curve() -> None:
    rows = metrics_of()
    whole = ParsedPage(render_run_report("run", result_of(), rows, sphere_of()))
    rows[3:3] = [rows[3] | {"loss": float("nan")}, rows[3] | {"loss": float("inf")}]
    page = ParsedPage(render_run_report("run", result_of(), rows, sphere_of()))
    assert "2 steps without an update" in page.prose
    curves = [[p["src"] for p in one.all("img") if "learning rate" in str(p["alt"])] for one in (whole, page)]
    assert curves[0] == curves[1] != []


def test_write_run_report_writes_page_and_card_without_the_path(tmp_path: Path) -> None:
    path = write_run_report(tmp_path, result_of(), [], None)
    assert path == tmp_path / "report.html"
    assert len(ParsedPage(path.read_text()).all("img")) == 2
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert card.startswith("# Model card")
    assert str(tmp_path.parent) not in path.read_text() + card


def test_largest_classes_are_those_with_most_slices_in_label_order() -> None:
    counts = [label % 7 for label in range(40)]
    labels = largest_classes(counts)
    assert labels == sorted(labels) and len(labels) == 12
    assert min(counts[label] for label in labels) >= max(counts[label] for label in set(range(40)) - set(labels))
    assert largest_classes([0, 5, 0]) == [0, 1, 2]


@pytest.mark.parametrize("classes", [2, 5, 6, 12])
def test_class_headings_of_many_columns_are_numbered(classes: int) -> None:
    names = [f"name {label}" for label in range(classes)]
    rows, columns = class_headings(names)
    if classes <= 5:
        assert rows == columns == names
    else:
        assert columns == [str(label + 1) for label in range(classes)]
        assert rows == [f"{column}: {name}" for column, name in zip(columns, names, strict=True)]
