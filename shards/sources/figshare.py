"""Jun Cheng's brain tumor dataset as its author distributes it: MATLAB files, loose or in the four original zips.

3064 contrast-enhanced T1-weighted slices of meningioma, glioma and pituitary tumour, each with a tumour mask. A PID
names an exam, not a patient: repeat exams of one patient have different PIDs, and the author's folds (``cvind.mat``)
are disjoint by exam only. ``--persons`` names a CSV with the patient of each slice or exam. Its cells, and the header's,
may be identifiers: errors name rows and slice numbers and never quote a cell.

Source: J. Cheng, brain tumor dataset, figshare 1512427, version 5 (2017), CC BY 4.0; J. Cheng et al., PLoS ONE 10(10),
e0140381 (2015).
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

from hsadml_dist.data.index import SkippedSample
from hsadml_dist.errors import DataError, UsageError, did_you_mean
from hsadml_dist.shards.source import DamagedSampleError, SourceListing, SourcePixels, SourceRecord
from hsadml_dist.shards.sources.figshare_files import (
    MOST_BYTES,
    DatasetFiles,
    FileLocation,
    find_files,
    read_folds,
    read_member,
)
from hsadml_dist.shards.sources.mat_file import FILES, SliceHeader, read_author_folds, read_header, read_pixels

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


CLASSES = {1: "meningioma", 2: "glioma", 3: "pituitary"}
FULL_SHAPE = (512, 512)
SPACING_MM = (0.49, 0.49)
"""Of the slices of full shape; the few of 256 x 256 do not say theirs."""


@dataclass(frozen=True, kw_only=True)
class FigshareSource:
    """The data set in a folder.

    Attributes:
        folder: Holds ``N.mat`` files or the original zips, up to two folders deep, and perhaps ``cvind.mat``.
        persons: A CSV that gives slices or exams their persons; without it no person is known.
        author_folds: Prescribe the author's folds (1 to 5, here 0 to 4) instead of drawing our own.
    """

    name: ClassVar[str] = "figshare"
    folder: Path
    persons: Path | None = None
    author_folds: bool = False

    def list_records(self) -> SourceListing:
        """List the slices by number; files that cannot be used are skipped.

        Raises:
            UsageError: The author's folds are wanted and ``cvind.mat`` is not there.
            DataError: The folder, a zip, ``cvind.mat`` or the table of persons is wrong, or no slice can be used.
        """
        persons = None if self.persons is None else parse_persons(read_persons(self.persons))
        found = find_files(self.folder)
        folds = self._folds(found)
        records: list[SourceRecord] = []
        skipped: list[SkippedSample] = []
        for number, place in sorted(found.slices.items()):
            try:
                header = read_header(_content(place.path, place.member, f"{number}.mat", place.size), f"{number}.mat")
            except DamagedSampleError as damage:
                skipped.append(damage.skip)
            else:
                records.append(self._record(number, header, place, persons, folds))
        if not records:
            raise DataError(
                f"INPUT: none of {len(skipped)} slices can be used; {skipped[0].where}: {skipped[0].reason}"
            )
        if persons is not None:
            refuse_torn_exams(records)
        return SourceListing(records=tuple(records), skipped=(*skipped, *_others(found.others)))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Read image and mask, int16 and uint8 in the original files.

        Raises:
            DamagedError: They cannot be read.
        """
        path, member = record.handle
        return read_pixels(_content(self.folder / path, member, record.where), record.where)

    def fingerprint(self) -> str:
        """Hash the settings, the small files, and each slice's size and time of change or CRC."""
        found = find_files(self.folder)
        parts: list[object] = [self.name, self.author_folds, found.others, read_folds(found.folds)]
        parts.append(None if self.persons is None else read_persons(self.persons))
        parts.extend((number, place.size, place.state) for number, place in sorted(found.slices.items()))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _folds(self, found: DatasetFiles) -> tuple[int, ...] | None:
        content = read_folds(found.folds)
        if content is None and self.author_folds:
            raise UsageError("--author-folds: there is no cvind.mat in INPUT: put it beside the slices")
        return None if content is None else read_author_folds(content)

    def _record(
        self,
        number: int,
        header: SliceHeader,
        place: FileLocation,
        persons: PatientTable | None,
        folds: tuple[int, ...] | None,
    ) -> SourceRecord:
        author_fold = None if folds is None else folds[number - 1]
        return SourceRecord(
            record_id=f"slice {number}",
            where=f"{number}.mat",
            class_name=CLASSES[header.label],
            person=None if persons is None else persons.of(number, header.pid),
            exam=header.pid,
            fold=author_fold - 1 if self.author_folds and author_fold is not None else None,
            author_fold=author_fold,
            spacing_mm=SPACING_MM if header.shape == FULL_SHAPE else None,
            handle=(str(place.path.relative_to(self.folder)), place.member),
        )


def _content(path: Path, member: str, where: str, size: int = 0) -> Path | BinaryIO:
    """Return what HDF5 can open: the file, or the unpacked member of a zip."""
    if not member:
        return path
    if size > MOST_BYTES:
        raise DamagedSampleError(where, f"claims {size} bytes in its zip: no slice is as large")
    return io.BytesIO(read_member(path, member, where))


def _others(count: int) -> Iterable[SkippedSample]:
    """Count the files that are no slice by their order, since a name may be an identifier."""
    for number in range(1, count + 1):
        yield SkippedSample(where=f"other .mat file {number} of {count}", reason=f"not named 1.mat ... {FILES}.mat")
