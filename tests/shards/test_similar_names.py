import unicodedata

import pytest

from hsadml_dist.shards.similar_names import class_name_hints, identifier_hints, similar_names
from hsadml_dist.shards.source import SourceRecord

UMLAUT = "Gehirn-Ödem"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Glioma", "glioma"),
        ("007", "7"),
        ("P012", "P12"),
        ("no tumor", "no_tumor"),
        (unicodedata.normalize("NFC", UMLAUT), unicodedata.normalize("NFD", UMLAUT)),
    ],
)
def test_similar_names_finds_two_spellings_of_one_name(one, other):
    assert similar_names([one, other, "x", other]) == [tuple(sorted((one, other)))]
    [hint] = class_name_hints([one, other])
    assert repr(one) in hint and repr(other) in hint


@pytest.mark.parametrize("names", [["7", "70"], ["0", "00x"], ["p1", "p2"], ["P1-1", "P11"], ["100", "10"], ["a", "a"]])
def test_similar_names_keeps_different_names_apart(names):
    assert similar_names(names) == []


def test_identifier_hints_name_samples_not_patients():
    rows = [("007", "A"), ("7", "A"), ("8", "b"), ("8", "B"), ("9", "b")]
    records = [
        SourceRecord(record_id=f"{at}", where=f"row {at}", class_name="c", person=f"SECRET{person}", exam=exam)
        for at, (person, exam) in enumerate(rows, start=1)
    ]
    patients, exams = identifier_hints(records)
    assert "patients" in patients and "row 1 and row 2" in patients
    assert "exams" in exams and "row 3 and row 4" in exams
    assert "SECRET" not in patients + exams
