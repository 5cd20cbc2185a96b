"""Jun Cheng's brain tumor dataset as its author distributes it: MATLAB files, loose or in the four original zips.

3064 contrast-enhanced T1-weighted slices of meningioma, glioma and pituitary tumour, each with a tumour mask. A PID
names an exam, not a patient: repeat exams of one patient have different PIDs, and the author's folds (``cvind.mat``)
are disjoint by exam only. ``--persons`` names a CSV with the patient of each slice or exam. Its cells, and those of its
header, may be identifiers: errors name rows and slice numbers, and never quote a cell.

Source: J. Cheng, brain tumor dataset, figshare 1512427, version 5 (2017), CC BY 4.0; J. Cheng et al., PLoS ONE 10(10),
e0140381 (2015).
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

from hsadml_dist.data.index import SkippedSample
from hsadml_dist.errors import DataError, UsageError, did_you_mean
from hsadml_dist.shards.source import (
    DamagedSampleError,
    SourceListing,
    SourcePixels,
    SourceRecord,
    require_regular_file,
)
from hsadml_dist.shards.sources.figshare_files import (
    MAX_FILE_BYTES,
    DatasetFiles,
    FileLocation,
    find_files,
    read_folds,
    read_zip_member,
)
from hsadml_dist.shards.sources.mat_file import SLICES, SliceHeader, read_author_folds, read_header, read_pixels

CLASSES = {1: "meningioma", 2: "glioma", 3: "pituitary"}
FULL_SHAPE = (512, 512)
SPACING_MM = (0.49, 0.49)
"""Pixel size of slices of full shape; the few of 256 x 256 do not state theirs."""

SETTING = "--persons"
PERSON = "person"
NUMBER_COLUMNS = ("index", "file")
EXAM_COLUMNS = ("exam", "pid")
KEY_COLUMNS = (*NUMBER_COLUMNS, *EXAM_COLUMNS)
COLUMNS = (PERSON, *KEY_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class FigshareSource:
    """The dataset in a folder.

    Attributes:
        folder: Holds ``N.mat`` files or the original zips, up to two folders deep, and perhaps ``cvind.mat``.
        persons: CSV with the patient of each slice or exam; without it no patient is known.
        author_folds: Prescribe the author's folds (1 to 5, here 0 to 4) instead of assigning our own.
    """

    name: ClassVar[str] = "figshare"
    folder: Path
    persons: Path | None = None
    author_folds: bool = False

    def list_records(self) -> SourceListing:
        """List the slices by number; files that cannot be used are skipped.

        Raises:
            UsageError: The author's folds are requested and ``cvind.mat`` is missing.
            DataError: The folder, a zip, ``cvind.mat`` or the table of patients is wrong, or no slice can be used.
        """
        patients = None if self.persons is None else parse_patient_table(_read_table(self.persons))
        files = find_files(self.folder)
        folds = self._author_folds(files)
        records: list[SourceRecord] = []
        skipped: list[SkippedSample] = []
        for number, location in sorted(files.slices.items()):
            where = f"{number}.mat"
            try:
                header = read_header(_open(location.path, location.member, where, location.size), where)
            except DamagedSampleError as damage:
                skipped.append(damage.skip)
            else:
                records.append(self._make_record(number, header, location, patients, folds))
        if not records:
            raise DataError(
                f"INPUT: none of {len(skipped)} slices can be used; {skipped[0].where}: {skipped[0].reason}"
            )
        if patients is not None:
            _check_exams(records)
        return SourceListing(records=tuple(records), skipped=(*skipped, *_other_files(files.others)))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Read image and mask, int16 and uint8 in the original files."""
        path, member = record.handle
        return read_pixels(_open(self.folder / path, member, record.where), record.where)

    def fingerprint(self) -> str:
        """Hash the options, the small files, and the size and modification time or CRC of each slice."""
        files = find_files(self.folder)
        parts: list[object] = [self.name, self.author_folds, files.others, read_folds(files.folds)]
        parts.append(None if self.persons is None else _read_table(self.persons))
        parts.extend((number, location.size, location.state) for number, location in sorted(files.slices.items()))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _author_folds(self, files: DatasetFiles) -> tuple[int, ...] | None:
        content = read_folds(files.folds)
        if content is None and self.author_folds:
            raise UsageError("--author-folds: no cvind.mat in INPUT; copy it next to the slices")
        return None if content is None else read_author_folds(content)

    def _make_record(
        self,
        number: int,
        header: SliceHeader,
        location: FileLocation,
        patients: PatientTable | None,
        folds: tuple[int, ...] | None,
    ) -> SourceRecord:
        author_fold = None if folds is None else folds[number - 1]
        return SourceRecord(
            record_id=f"slice {number}",
            where=f"{number}.mat",
            class_name=CLASSES[header.label],
            person=None if patients is None else patients.find(number, header.pid),
            exam=header.pid,
            fold=author_fold - 1 if self.author_folds and author_fold is not None else None,
            author_fold=author_fold,
            spacing_mm=SPACING_MM if header.shape == FULL_SHAPE else None,
            handle=(str(location.path.relative_to(self.folder)), location.member),
        )


@dataclass(frozen=True, kw_only=True)
class PatientTable:
    """The patient of each slice number, as text, if ``by_number``, otherwise of each PID."""

    by_number: bool
    patients: dict[str, str]

    def find(self, number: int, pid: str) -> str:
        """Return the patient of a slice.

        Raises:
            DataError: The table has no row for it.
        """
        patient = self.patients.get(str(number) if self.by_number else pid)
        if patient is None:
            key = "number" if self.by_number else "PID"
            raise DataError(f"{SETTING}: {number}.mat has no patient: the table has no row for its {key}")
        return patient


def parse_patient_table(content: bytes) -> PatientTable:
    """Parse a CSV with the columns ``person`` and one of ``index``, ``file``, ``exam``, ``pid``; others are ignored.

    Raises:
        DataError: Not a CSV in UTF-8, a missing column, or one slice or exam with two patients; one line each.
    """
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = [cells for cells in csv.reader(text, strict=True) if cells]
    except UnicodeDecodeError as error:
        raise DataError(f"{SETTING}: not a CSV in UTF-8: invalid byte {error.start}") from error
    except csv.Error as error:
        raise DataError(f"{SETTING}: not a CSV: {error}") from error
    header = [cell.strip() for cell in rows[0]] if rows else []
    key_column, person_column = _find_columns(header)
    by_number = header[key_column] in NUMBER_COLUMNS
    patients: dict[str, str] = {}
    first_row: dict[str, int] = {}
    for row, cells in enumerate(rows[1:], start=1):
        key, patient = _parse_row(cells, key_column, person_column, by_number, row)
        if patients.setdefault(key, patient) != patient:
            raise DataError(f"{SETTING}: rows {first_row[key]} and {row} give one slice or exam two patients")
        first_row.setdefault(key, row)
    return PatientTable(by_number=by_number, patients=patients)


def _read_table(path: Path) -> bytes:
    try:
        require_regular_file(path)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{SETTING} {path}: cannot be read: {error.strerror}") from error


def _check_exams(records: Sequence[SourceRecord]) -> None:
    """Raise if two patients share an exam."""
    first: dict[str | None, SourceRecord] = {}
    for record in records:
        other = first.setdefault(record.exam, record)
        if other.person != record.person:
            raise DataError(
                f"{SETTING}: {other.where} and {record.where} have the same exam (PID) but different patients; "
                "correct the table"
            )


def _find_columns(header: Sequence[str]) -> tuple[int, int]:
    """Return the positions of the key column and the person column; of several key columns, the first one counts."""
    keys = [name for name in KEY_COLUMNS if name in header]
    if not keys or PERSON not in header:
        missing = PERSON if PERSON not in header else " or ".join(KEY_COLUMNS)
        raise DataError(
            f"{SETTING}: the table lacks the column {missing}{_suggest_column(header)}; "
            f"it needs {PERSON} and one of {', '.join(KEY_COLUMNS)}"
        )
    for name in (keys[0], PERSON):
        if header.count(name) > 1:
            raise DataError(f"{SETTING}: the table has two columns {name!r}")
    return header.index(keys[0]), header.index(PERSON)


def _suggest_column(header: Sequence[str]) -> str:
    """Name a misspelt column by its position: the first line of a table without a header holds identifiers."""
    for position, cell in enumerate(header, start=1):
        if cell not in COLUMNS and (hint := did_you_mean(cell.lower(), COLUMNS)):
            return f"; column {position}:{hint}"
    return ""


def _parse_row(cells: Sequence[str], key_column: int, person_column: int, by_number: bool, row: int) -> tuple[str, str]:
    """Return key and patient of one row."""
    if len(cells) <= max(key_column, person_column):
        raise DataError(f"{SETTING}: row {row}: {len(cells)} cells, fewer than the header has")
    key, patient = cells[key_column].strip(), cells[person_column].strip()
    if not key or not patient:
        raise DataError(f"{SETTING}: row {row}: an empty cell; every row needs a person and a slice or exam")
    if not by_number:
        return key, patient
    number = re.fullmatch(r"0*([1-9][0-9]*)(\.mat)?", key, re.ASCII)
    if number is None:
        raise DataError(f"{SETTING}: row {row}: its slice is not a number such as 17 or 17.mat")
    return number[1], patient


def _open(path: Path, member: str, where: str, size: int = 0) -> Path | BinaryIO:
    """Return what HDF5 can open: the path of a file, or the unpacked member of a zip."""
    if not member:
        return path
    if size > MAX_FILE_BYTES:
        raise DamagedSampleError(where, f"{size} bytes according to its zip: larger than any slice")
    return io.BytesIO(read_zip_member(path, member, where))


def _other_files(count: int) -> Iterator[SkippedSample]:
    """Yield the files that are not slices by number, since a name may be an identifier."""
    for number in range(1, count + 1):
        yield SkippedSample(where=f"other .mat file {number} of {count}", reason=f"not named 1.mat ... {SLICES}.mat")
