"""The page: whole, self-contained, and honest."""

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

from hsadml_dist.report.run_report import render_run_report, write_run_report
from tests.report.report_samples import (
    VERSIONS,
    ParsedPage,
    cases_of,
    full_result_of,
    metrics_of,
    persons_of,
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


def test_nothing_is_fetched_and_nothing_runs(full: str) -> None:
    page = ParsedPage(full)
    assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("a")
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href", "xlink:href") or (value or "").startswith("data:image/")
    assert not re.search(r"url\(|@import|https?://", full)


def test_each_picture_is_whole_and_has_words(full: str) -> None:
    pictures = ParsedPage(full).all("img")
    assert len({picture["alt"] for picture in pictures}) == len(pictures) == 8 + 3 * 4
    for picture in pictures:
        kind, _, content = (picture["src"] or "").partition(",")
        whole = base64.b64decode(content, validate=True)
        if kind == "data:image/png;base64":
            image = Image.open(io.BytesIO(whole))
            assert (image.mode, image.size) == ("L", (128, 128))
            continue
        assert len(picture["alt"] or "") > 40
        drawing = ElementTree.fromstring(whole)
        assert drawing.tag.endswith("svg")
        links = [href for element in drawing.iter() for name, href in element.items() if name.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)


def test_each_section_has_its_picture_and_a_table(full: str) -> None:
    kinds = [tag for tag, _ in ParsedPage(full).tags if tag in ("h2", "img", "table")]
    parts = " ".join(kinds).split("h2")[1:]
    assert len(parts) == 11
    for part in parts[:-2]:
        assert part.split()[0] == "img" and part.split()[-1] == "table"
    # Checklist and provenance are tables alone.
    assert parts[-2].split() == ["table"] * 8
    assert parts[-1].split() == ["table"]
    assert len(ParsedPage(full).all("caption")) == kinds.count("table")


def test_an_old_verdict_still_has_its_page(text: str) -> None:
    assert len(ParsedPage(text).all("img")) == 4
    words = ParsedPage(text).prose
    for part in ("81.2%", "73.1% to 88.3%", "79.8%", "82.4%", "68.8%", "Research use only", "Not a medical device"):
        assert part in words
    assert "Folds are split by person" in words
    assert "300 steps in 2 attempts" in words
    assert "low-level" not in words and "Calibration" not in words


def test_all_numbers_stand_in_the_text(full: str) -> None:
    words = ParsedPage(full).prose
    for part in (
        "low-level features 65.2%",
        "55.1% to 72.3%",
        "support vector machine 84.0% 70.0% to 95.0% 83.0%",
        "new method 78.0%",
        "right 35",
        "undecided 2",
        "wrong 3",
        "40% to 60% 10 55.0% 60.0% +5.0 points",
        "80% to 100% 20 93.0% 90.0% -3.0 points",
        "expected calibration error 0.037",
        "Brier score 0.123",
        "negative log-likelihood 0.432",
        "<class 1> 10 31.3° 84.5° 40.2° -",
        "all 30 31.3° 84.5° 40.2° 86.3°",
        "118.5°",
        "energy s1 0.483 0.477",
        "loss.margin 4",
        "torch 2.13.0",
    ):
        assert part in words, part


def test_the_controls_come_last_among_the_methods(full: str) -> None:
    words = ParsedPage(full).prose
    rows = words[words.index("Every method") :]
    places = [rows.index(name) for name in ("naive Bayes", "new method", "raw pixels (control)", "low-level features")]
    assert places == sorted(places)


def test_right_and_wrong_are_told_by_word_and_shape(full: str) -> None:
    page = ParsedPage(full)
    for number, verdict in ((1, "wrong"), (2, "right"), (3, "wrong")):
        assert f"Case {number}: {verdict}." in page.prose
    shapes = [str(attributes["class"]) for attributes in page.all("svg")]
    # A mark for each case and for each of its three neighbours.
    assert len(shapes) == 3 * (1 + 3)
    for shape, word in (("mark", "same class"), ("mark cross", "other class")):
        cases = 1 if shape == "mark" else 2
        assert shapes.count(shape) == cases + full.count(f"<b>{word}</b>")


def test_names_from_outside_are_escaped(full: str) -> None:
    for raw in ("<b>.", "ce_mri <b>", "<class", "<glioma", "<query", "<adamw"):
        assert raw not in full.replace("<b>query</b>", "")
    for escaped in ("Verdict on ce_mri &lt;b&gt;", "&lt;class 0&gt;", "&lt;glioma 1&gt;", "&lt;query&gt;", "&lt;adamw"):
        assert escaped in full


def test_the_same_numbers_give_the_same_page(full: str) -> None:
    assert render_run_report("ce_mri <b>", full_result_of(), metrics_of(), sphere_of(), cases_of(), VERSIONS) == full


def test_a_large_verdict_stays_under_the_limit_and_says_what_it_leaves_out() -> None:
    many = render_run_report(
        "many", full_result_of(300), metrics_of(100_000), sphere_of(300, 30_000), cases_of(12, 300)
    )
    assert len(many.encode()) < LIMIT
    page = ParsedPage(many)
    assert "the 12 classes with most test slices of 300" in page.prose
    assert "Slices of all others are grey dots." in page.prose
    assert "the first 10 of 12" in page.prose


@pytest.mark.parametrize("classes", [12, 13, 300])
def test_above_twelve_classes_a_few_pairs_stand_for_the_table_of_each_by_each(classes: int) -> None:
    words = ParsedPage(render_run_report("run", full_result_of(classes), metrics_of(), sphere_of(classes, 900))).prose
    assert ("Slices by true class (rows)" in words) == ("Angles between class centres" in words) == (classes == 12)
    assert ("too many for a table of each by each" in words) == (classes > 12)
    if classes > 12:
        whole = "All that is mixed up: 12 pairs" if classes == 13 else "Mixed up most: 20 of 299 pairs"
        for part in (f"{whole} of classes", "<class 0> <class 1> 2", f"every slice right 1 {1 / classes:.1%}"):
            assert part in words, part
        for part in (
            f"Angles between the {classes} class centres",
            "nearest two centres 102.2",
            "farthest two centres",
        ):
            assert part in words, part
        assert "<class 0> <class 2> 103.2°" in words


def test_a_page_on_persons_says_whom_it_is_about_and_stays_small() -> None:
    text = render_run_report("run", persons_of(), metrics_of(100_000), sphere_of(300, 30_000), cases_of(12, 300))
    assert len(text.encode()) < LIMIT
    words = ParsedPage(text).prose
    opening = words[: words.index("Figures of merit")]
    for part in (
        "one of the same person",
        "telling 300 persons apart",
        "2 slices of persons unknown to the training",
        "classes 300 persons",
    ):
        assert part in opening, part
    assert "flatters every figure" not in words and "also occur in the training folds" not in words


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes_are_no_error(classes: int) -> None:
    result = full_result_of(classes)
    if classes == 1:
        result["geometry"]["energy"] = None
        result["geometry"]["histogram"]["other_centre"] = [0] * 90
    page = ParsedPage(render_run_report("few", result, [], sphere_of(classes, dim=3), cases_of(1)))
    assert "Embeddings have 3 components" in page.prose
    assert ("evenly spread centres (180.0° apart)" in page.prose) == (classes == 2)


@pytest.mark.parametrize("part", OPTIONAL)
def test_each_optional_part_may_be_missing(part: str, full: str) -> None:
    without = {name: value for name, value in full_result_of().items() if name != part}
    page = ParsedPage(render_run_report("ce_mri <b>", without, metrics_of(), sphere_of(), cases_of(), VERSIONS))
    assert len(page.prose) < len(ParsedPage(full).prose)
    assert len(page.all("img")) == len(ParsedPage(full).all("img")) - (part not in ("low_level_knn", "recipe"))


def test_a_part_that_is_none_is_missing(text: str) -> None:
    nothing = dict.fromkeys(OPTIONAL)
    assert render_run_report("ce_mri <b>", result_of() | nothing, metrics_of(), sphere_of()) == text


def test_page_and_card_are_written_into_the_run(tmp_path: Path) -> None:
    path = write_run_report(tmp_path, result_of(), [], None)
    assert path == tmp_path / "report.html"
    assert len(ParsedPage(path.read_text()).all("img")) == 2
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert card.startswith("# Model card")
    assert str(tmp_path.parent) not in path.read_text() + card


def test_a_table_of_too_many_classes_is_no_section() -> None:
    page = ParsedPage(render_run_report("run", result_of() | {"confusion": None}, [], None))
    assert len(page.all("img")) == 1


@pytest.mark.parametrize(
    ("where", "key", "value", "words"),
    [
        ("", "split_unit", "slice", "slices of one person may stand in training and test"),
        ("intervals", "units", 6, "Only 6 persons in the test fold"),
    ],
)
def test_what_stands_against_a_verdict_comes_first(where: str, key: str, value: object, words: str) -> None:
    result: dict[str, Any] = copy.deepcopy(result_of())
    (result[where] if where else result)[key] = value
    page = ParsedPage(render_run_report("run", result, [], None)).prose
    assert words in page[: page.index("Figures of merit")]


def test_steps_whose_loss_was_not_finite_are_told_and_spoil_no_curve() -> None:
    rows = metrics_of()
    whole = ParsedPage(render_run_report("run", result_of(), rows, sphere_of()))
    rows[3:3] = [rows[3] | {"loss": float("nan")}, rows[3] | {"loss": float("inf")}]
    page = ParsedPage(render_run_report("run", result_of(), rows, sphere_of()))
    assert "Left out: 2 steps that changed nothing" in page.prose
    assert "Left out" not in whole.prose
    curves = [[p["src"] for p in one.all("img") if "learning rate" in p["alt"]] for one in (whole, page)]
    assert curves[0] == curves[1] != []
