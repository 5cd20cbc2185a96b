"""Who is who in Jun Cheng's data set: a CSV that gives each slice, or each exam (PID), its person.

The data set names exams only, and repeat exams of one person carry different PIDs; a split by person needs this table.
Errors name rows and slices' numbers; cells, the header's included, may be identifiers and are never repeated.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.errors import DataError, did_you_mean
from hsadml_dist.shards.record import SourceRecord

SETTING = "--persons"
PERSON = "person"
NUMBER_COLUMNS = ("index", "file")
EXAM_COLUMNS = ("exam", "pid")
COLUMNS = (PERSON, *NUMBER_COLUMNS, *EXAM_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class PatientTable:
    """A table of persons.

    Attributes:
        by_number: Whether its keys are slices' numbers, as text; else they are PIDs.
        people: Key to person.
    """

    by_number: bool
    people: dict[str, str]

    def of(self, number: int, pid: str) -> str:
        """Return the person of one slice.

        Raises:
            DataError: The table has no row for it.
        """
        person = self.people.get(str(number) if self.by_number else pid)
        if person is None:
            what = "its number" if self.by_number else "its PID"
            raise DataError(f"{SETTING}: {number}.mat has no person: the table has no row for {what}")
        return person


def parse_persons(content: bytes) -> PatientTable:
    """Read the CSV: ``person`` and one of ``index``, ``file``, ``exam``, ``pid``; other columns are left alone.

    Raises:
        DataError: No CSV in UTF-8, a column that is missing, or one slice or exam with two persons; one line each.
    """
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = [cells for cells in csv.reader(text, strict=True) if cells]
    except UnicodeDecodeError as error:
        raise DataError(f"{SETTING}: no CSV in UTF-8: byte {error.start} is none") from error
    except csv.Error as error:
        raise DataError(f"{SETTING}: no CSV: {error}") from error
    header = [cell.strip() for cell in rows[0]] if rows else []
    column, person = _columns(header)
    by_number = header[column] in NUMBER_COLUMNS
    people: dict[str, str] = {}
    first: dict[str, int] = {}
    for row, cells in enumerate(rows[1:], start=1):
        key, name = _cells(cells, column, person, by_number, row)
        _add(people, first, key, name, row)
    return PatientTable(by_number=by_number, people=people)


def read_persons(path: Path) -> bytes:
    """Return the CSV's bytes.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{SETTING} {path}: cannot be read: {error.strerror}") from error


def refuse_torn_exams(records: Sequence[SourceRecord]) -> None:
    """Refuse persons who share an exam: an exam is of one person.

    Raises:
        DataError: Names two slices by number.
    """
    first: dict[str | None, SourceRecord] = {}
    for record in records:
        other = first.setdefault(record.exam, record)
        if other.person != record.person:
            raise DataError(
                f"{SETTING}: {other.where} and {record.where} share an exam (PID) but not a person: repair the table"
            )


def _columns(header: Sequence[str]) -> tuple[int, int]:
    """Return the places of the key's and the person's column; the first of the key columns counts."""
    keys = [name for name in (*NUMBER_COLUMNS, *EXAM_COLUMNS) if name in header]
    if not keys or PERSON not in header:
        missing = PERSON if PERSON not in header else " or ".join((*NUMBER_COLUMNS, *EXAM_COLUMNS))
        raise DataError(
            f"{SETTING}: the table lacks the column {missing}{_spelling(header)}; "
            f"it needs {PERSON} and one of {', '.join((*NUMBER_COLUMNS, *EXAM_COLUMNS))}"
        )
    for name in (keys[0], PERSON):
        if header.count(name) > 1:
            raise DataError(f"{SETTING}: the table names the column {name!r} twice")
    return header.index(keys[0]), header.index(PERSON)


def _spelling(header: Sequence[str]) -> str:
    """Point at a column that is nearly right by its place, for a table without a header starts with identifiers."""
    for place, cell in enumerate(header, start=1):
        if cell not in COLUMNS and (hint := did_you_mean(cell.lower(), COLUMNS)):
            return f"; column {place}:{hint}"
    return ""


def _cells(cells: Sequence[str], column: int, person: int, by_number: bool, row: int) -> tuple[str, str]:
    """Return key and person of one row."""
    if len(cells) <= max(column, person):
        raise DataError(f"{SETTING}: row {row}: {len(cells)} cells, fewer than the header has")
    key, name = cells[column].strip(), cells[person].strip()
    if not key or not name:
        raise DataError(f"{SETTING}: row {row}: an empty cell: every row needs a person and what it is the person of")
    if not by_number:
        return key, name
    number = re.fullmatch(r"0*([1-9][0-9]*)(\.mat)?", key, re.ASCII)
    if number is None:
        raise DataError(f"{SETTING}: row {row}: its slice is no number such as 17 or 17.mat")
    return number[1], name


def _add(people: dict[str, str], first: dict[str, int], key: str, person: str, row: int) -> None:
    if people.setdefault(key, person) != person:
        raise DataError(f"{SETTING}: rows {first[key]} and {row} give one slice or exam two persons")
    first.setdefault(key, row)
