import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest

from hsadml_dist.data.index import SkippedSample, load_index
from hsadml_dist.shards.card import MAX_SKIPPED_ROWS, author_folds_remark, card_page, remarks
from hsadml_dist.shards.leakage import LeakageReport
from hsadml_dist.shards.summary import AuthorFolds, summarise

LEAKAGE = LeakageReport(accuracy={"person": 0.5, "slice": 0.75}, slices=40)


@pytest.fixture(scope="module")
def summary(small_shards):
    return summarise(load_index(small_shards))


def test_card_json_holds_summary_and_baseline(small_shards, summary):
    card = json.loads((small_shards / "card.json").read_text())
    control = card.pop("raw_pixel_knn")
    assert card == json.loads(json.dumps(asdict(summary)))
    assert set(control["accuracy"]) == {"person", "exam", "slice"} and control["slices"] == summary.total.samples
    assert all(0 <= value <= 1 for value in control["accuracy"].values())


def test_card_page_is_self_contained_and_well_formed(small_shards):
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


def test_card_page_shows_every_count(summary):
    text = card_page(summary, LEAKAGE, ())
    for count in [*summary.classes.values(), *summary.folds.values(), summary.total]:
        assert f">{count.samples}<" in text and f">{count.persons}<" in text
    assert "patient (these folds)" in text and ">0.750<" in text
    assert summary.digest in text


def test_card_page_escapes_class_names(summary):
    classes = {"<b>": summary.classes["glioma"]}
    folds = {0: replace(summary.total, by_class={"<b>": 1})}
    text = card_page(replace(summary, classes=classes, folds=folds, total=folds[0]), LEAKAGE, ())
    assert "&lt;b&gt;" in text and "<b>" not in text


def test_remarks_start_with_a_leaky_split(summary):
    for unit in ("exam", "slice"):
        first = next(iter(remarks(replace(summary, unit=unit))))
        assert first.startswith(f"Split by {unit}.")
    assert not any(text.startswith("Split by") for text in remarks(summary))
    unknown = replace(summary, unit="slice", total=replace(summary.total, persons=None))
    assert "Patients are not known" in next(iter(remarks(unknown)))


def test_remarks_contain_all_findings(summary):
    odd = replace(
        summary,
        source="table",
        persons_in_two_classes=1,
        repeated_images=3,
        repeats_across_folds=2,
        skipped=tuple(SkippedSample(where=f"row {n}", reason="damaged") for n in range(MAX_SKIPPED_ROWS + 9)),
    )
    text = " ".join(remarks(odd))
    assert "1 patient with slices of more than one class" in text
    assert "3 images identical to another one, 2 of them across folds" in text
    assert f"{MAX_SKIPPED_ROWS + 9} items of the source skipped" in text
    assert "burned-in names" in text
    page = card_page(odd, LEAKAGE, ())
    assert page.count("<td>damaged") + page.count('class="short">damaged') == MAX_SKIPPED_ROWS
    assert "Generated patients" in " ".join(remarks(summary))


@pytest.mark.parametrize(
    ("patients", "exams", "facts"),
    [
        (24, 0, ["disjoint by exam only", "24 patients in more than one fold"]),
        (None, 0, ["disjoint by exam only", "patients are not known"]),
        (0, 0, ["disjoint by exam and patient."]),
        (2, 1, ["1 exam in more than one fold", "2 patients in more than one fold"]),
        (None, None, ["exams are not known", "patients are not known"]),
    ],
)
def test_author_folds_remark_names_disjoint_units(patients, exams, facts):
    text = author_folds_remark(AuthorFolds(samples={1: 3}, torn_persons=patients, torn_exams=exams))
    assert [fact for fact in facts if fact not in text] == []
    assert ("disjoint" in text) == (0 in (patients, exams))
