import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest

from hsadml_dist.data.index import SkippedSample, load_index
from hsadml_dist.shards.card import MOST_SKIPS, author_remark, card_page, remarks
from hsadml_dist.shards.leakage import LeakageReport
from hsadml_dist.shards.summary import AuthorFolds, summarise

LEAK = LeakageReport(accuracy={"person": 0.5, "slice": 0.75}, slices=40)


@pytest.fixture(scope="module")
def summary(small_shards):
    return summarise(load_index(small_shards))


def test_json_holds_the_summary_and_the_control(small_shards, summary):
    card = json.loads((small_shards / "card.json").read_text())
    control = card.pop("raw_pixel_knn")
    assert card == json.loads(json.dumps(asdict(summary)))
    assert set(control["accuracy"]) == {"person", "exam", "slice"} and control["slices"] == summary.total.samples
    assert all(0 <= value <= 1 for value in control["accuracy"].values())


def test_the_page_stands_alone_and_is_well_formed(small_shards):
    text = (small_shards / "card.html").read_text()
    assert len(text) < 2_000_000
    assert not re.search(r"<script|<link|https?://|src=\"(?!data:)", text)
    pictures: list[dict[str, str | None]] = []
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag == "img":
                pictures.append(dict(attrs))
            if tag not in ("img", "meta"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Reader().feed(text)
    assert not opened
    assert len(pictures) == 3 and all(picture["alt"] for picture in pictures)


def test_every_count_is_on_the_page(summary):
    text = card_page(summary, LEAK, ())
    for count in [*summary.classes.values(), *summary.folds.values(), summary.total]:
        assert f">{count.samples}<" in text and f">{count.persons}<" in text
    assert "person (these folds)" in text and ">0.750<" in text
    assert summary.digest in text


def test_class_names_are_escaped(summary):
    classes = {"<b>": summary.classes["glioma"]}
    folds = {0: replace(summary.total, by_class={"<b>": 1})}
    text = card_page(replace(summary, classes=classes, folds=folds, total=folds[0]), LEAK, ())
    assert "&lt;b&gt;" in text and "<b>" not in text


def test_a_split_that_flatters_is_the_first_thing_said(summary):
    for unit in ("exam", "slice"):
        first = next(iter(remarks(replace(summary, unit=unit))))
        assert first.startswith(f"unit: {unit}.") and "flattered" in first
    assert not any(text.startswith("unit") for text in remarks(summary))
    unknown = replace(summary, unit="slice", total=replace(summary.total, persons=None))
    assert "Persons are not known" in next(iter(remarks(unknown)))


def test_all_findings_are_told(summary):
    odd = replace(
        summary,
        source="table",
        persons_in_two_classes=1,
        repeated_images=3,
        repeats_across_folds=2,
        skipped=tuple(SkippedSample(where=f"row {n}", reason="damaged") for n in range(MOST_SKIPS + 9)),
    )
    text = " ".join(remarks(odd))
    assert "1 person with slices of more than one class" in text
    assert "3 images with the very bytes of another, 2 of them across folds" in text
    assert f"Left out, since it cannot be used: {MOST_SKIPS + 9} samples of the source" in text
    assert "names burned into images" in text
    page = card_page(odd, LEAK, ())
    assert page.count("<td>damaged") + page.count('class="short">damaged') == MOST_SKIPS
    assert "Generated patients" in " ".join(remarks(summary))


@pytest.mark.parametrize(
    ("persons", "exams", "text"),
    [
        (24, 0, "The publisher's folds are disjoint by exam only: 24 persons on both sides."),
        (None, 0, "The publisher's folds are disjoint by exam only: persons are not known."),
        (0, 0, "The publisher's folds are disjoint by exam and person."),
        (2, 1, "The publisher's folds keep nothing apart: 1 exam on both sides, 2 persons on both sides."),
        (None, None, "The publisher's folds keep nothing apart: exams are not known, persons are not known."),
    ],
)
def test_what_the_publishers_folds_keep_apart(persons, exams, text):
    assert author_remark(AuthorFolds(samples={1: 3}, torn_persons=persons, torn_exams=exams)) == text
