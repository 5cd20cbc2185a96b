"""The page: whole, self-contained, and honest."""

from __future__ import annotations

import base64
import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hsadml_dist.report.html import render, write_report
from hsadml_dist.report.sphere import SphereView, view
from hsadml_dist.report.wording import headline, remarks

LIMIT = 2_000_000


def result_of(classes: int = 3) -> dict[str, Any]:
    return {
        "split_unit": "person",
        "classes": [f"<class {label}>" for label in range(classes)],
        "fold": 2,
        "checkpoint": {"name": "step-00000600.attempt-0001", "step": 600, "attempt": 1},
        "chosen_by": "last step",
        "seed": 0,
        "loss": "sphereface",
        "model": "resnet_gn_small",
        "world_size": 2,
        "data_digest": "ab" * 32,
        "persons": 40,
        "slices": 10 * classes,
        "reference_slices": 1633,
        "shared_persons": 0,
        "knn_accuracy": 0.8125,
        "balanced_accuracy": 0.7975,
        "head_accuracy": 0.8241,
        "raw_pixel_knn": 0.6882,
        "intervals": {
            "knn_accuracy": [0.7311, 0.8833],
            "balanced_accuracy": [0.7012, 0.8714],
            "head_accuracy": [0.7402, 0.8912],
            "raw_pixel_knn": None,
            "interval_unit": "person",
            "units": 40,
            "level": 0.95,
            "resamples": 2000,
        },
        "confusion": (8 * np.eye(classes, dtype=int) + 2 * np.eye(classes, k=1, dtype=int)).tolist(),
        "schema_version": 1,
    }


def sphere_of(classes: int = 3, slices: int = 60) -> SphereView:
    generator = np.random.default_rng(0)
    return view(generator.normal(size=(slices, 8)), np.arange(slices) % classes, generator.normal(size=(classes, 8)))


def metrics_of(steps: int = 300) -> list[dict[str, Any]]:
    return [{"step": step, "attempt": 1 + (step > 100), "loss": 9 / step, "lr": 1e-3} for step in range(1, steps + 1)]


class Page(HTMLParser):
    """Collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return render("ce_mri <b>", result_of(), metrics_of(), sphere_of())


def test_nothing_is_fetched_and_nothing_runs(text: str) -> None:
    page = Page(text)
    assert not page.all("script") + page.all("link") + page.all("iframe")
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href") or (value or "").startswith("data:image/svg+xml;base64,")
    assert not re.search(r"url\(|@import|https?://", text)


def test_each_picture_is_whole_and_stands_beside_words_and_a_table(text: str) -> None:
    page = Page(text)
    pictures = page.all("img")
    assert len(pictures) == 4
    for picture in pictures:
        assert len(picture["alt"] or "") > 40
        drawing = ElementTree.fromstring(base64.b64decode((picture["src"] or "").split(",")[1]))
        assert drawing.tag.endswith("svg")
        links = [href for element in drawing.iter() for name, href in element.items() if name.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)
    order = [tag for tag, _ in page.tags if tag in ("img", "table")]
    assert order == ["img", "table"] * 4 + ["table"]
    assert len(page.all("caption")) == 5


def test_the_figures_their_intervals_and_the_notice_are_in_the_text(text: str) -> None:
    words = " ".join(" ".join(Page(text).words).split())
    for part in ("81.2%", "73.1% to 88.3%", "79.8%", "82.4%", "68.8%", "Research use only", "Not a medical device"):
        assert part in words
    assert "Folds are split by person" in words
    assert "300 steps in 2 attempts" in words


def test_names_from_outside_are_escaped(text: str) -> None:
    assert "<b>" not in text
    assert "<class" not in text
    assert "Verdict on ce_mri &lt;b&gt;" in text


def test_the_same_numbers_give_the_same_page(text: str) -> None:
    assert render("ce_mri <b>", result_of(), metrics_of(), sphere_of()) == text


def test_a_large_verdict_stays_under_the_limit_and_says_what_it_leaves_out() -> None:
    many = render("many", result_of(400), metrics_of(200_000), sphere_of(400, 40_000))
    assert len(many.encode()) < LIMIT
    assert "the 12 classes with most test slices of 400" in many


def test_without_metrics_and_sphere_their_sections_are_left_out(tmp_path: Path) -> None:
    path = write_report(tmp_path, result_of(), [], None)
    assert path == tmp_path / "report.html"
    assert len(Page(path.read_text()).all("img")) == 2
    assert str(tmp_path.parent) not in path.read_text()


def test_a_table_of_too_many_classes_is_no_section() -> None:
    page = Page(render("run", result_of() | {"confusion": None}, [], None))
    assert len(page.all("img")) == 1


def test_one_sentence_says_it_all() -> None:
    assert headline(result_of()) == (
        "81.2% of 30 unseen slices of 40 persons have their nearest neighbour, among 1,633 training slices, in the"
        " right class (95% interval by person: 73.1% to 88.3%). Raw pixels alone reach 68.8%. Folds are split by"
        " person."
    )


def test_nothing_is_held_against_a_sound_verdict() -> None:
    assert list(remarks(result_of())) == []


@pytest.mark.parametrize(
    ("where", "key", "value", "words"),
    [
        ("", "split_unit", "slice", "slices of one person may stand in training and test"),
        ("", "shared_persons", 1, "1 person of the test fold also occur"),
        ("", "persons", None, "name no persons"),
        ("intervals", "interval_unit", "exam", "drawn by exam, not by person"),
        ("intervals", "units", 6, "Only 6 persons in the test fold"),
        ("intervals", "knn_accuracy", [0.68, 0.9], "does not clear the control"),
    ],
)
def test_what_stands_against_a_verdict_is_said(where: str, key: str, value: object, words: str) -> None:
    result = copy.deepcopy(result_of())
    (result[where] if where else result)[key] = value
    assert [remark for remark in remarks(result) if words in remark]
    assert words in render("run", result, [], None)
