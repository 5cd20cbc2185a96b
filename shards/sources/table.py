"""A CSV with one row an image: columns file, class, person, and optionally exam, plane, fold, mask."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hsadml_dist.errors import DataError, UsageError, did_you_mean
from hsadml_dist.shards.source import PLANES, DamagedSampleError, SourceListing, SourcePixels, SourceRecord
from hsadml_dist.shards.sources.image_files import IMAGE_EXTENSIONS, decode_image_file

ROLES = ("file", "class", "person", "exam", "plane", "fold", "mask")
NEEDED = ("file", "class")


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Images listed by a CSV.

    Attributes:
        table: The CSV; its first line names the columns.
        images: Where relative files lie; the CSV's own folder by default.
        columns: Role to column name where they differ, for instance ``{"file": "index"}``.
        where: Column name to the value that a row must have to be taken.
    """

    name: ClassVar[str] = "table"
    table: Path
    images: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)

    def list_records(self) -> SourceListing:
        """List the rows that ``where`` takes; row numbers count data rows from 1, those left out included."""
        header, rows = _read_csv(self.table)
        names = self._column_names(header)
        taken = [
            _record(number, row, names)
            for number, row in enumerate(rows, start=1)
            if all(row[column] == value for column, value in self.where.items())
        ]
        if not taken:
            rule = " with " + " and ".join(f"{c}={v}" for c, v in self.where.items()) if self.where else ""
            raise DataError(f"the table has {len(rows)} rows and none{rule}: nothing to build")
        return SourceListing(records=tuple(taken))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Read the image, and the mask where the row names one."""
        image, mask = record.handle
        pixels = decode_image_file(self._find(image, record, "image"), record.where, "image")
        outline = decode_image_file(self._find(mask, record, "mask"), record.where, "mask") if mask else None
        if outline is not None and outline.shape != pixels.shape:
            raise DamagedSampleError(
                record.where, f"the mask is {outline.shape}, its image {pixels.shape}: expected one shape"
            )
        return SourcePixels(image=pixels, mask=outline)

    def fingerprint(self) -> str:
        """Hash the table and every file's size and time of change."""
        digest = hashlib.sha256(repr((sorted(self.columns.items()), sorted(self.where.items()))).encode())
        digest.update(self.table.read_bytes())
        for record in self.list_records().records:
            for role, name in zip(("image", "mask"), record.handle, strict=True):
                if name:
                    state = self._find(name, record, role).stat()
                    digest.update(f"{state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _column_names(self, header: list[str]) -> dict[str, str]:
        """Return role to column for all roles that the table has."""
        for role, column in self.columns.items():
            if role not in ROLES:
                raise UsageError(
                    f"--columns {role}={column}: {role!r}: allowed: {', '.join(ROLES)}{did_you_mean(role, ROLES)}"
                )
            _need_column(header, column, f"--columns {role}={column}")
        for column, value in self.where.items():
            _need_column(header, column, f"--where {column}={value}")
        for role in NEEDED:
            _need_column(
                header, self.columns.get(role, role), f"column for {role!r}", f"; map it by --columns {role}=NAME"
            )
        names = {role: self.columns.get(role, role) for role in ROLES}
        return {role: column for role, column in names.items() if column in header}

    def _find(self, name: str, record: SourceRecord, role: str) -> Path:
        """Return the file of a row: as named, else with one of the usual extensions."""
        base = (self.images or self.table.parent) / name
        candidates = [base, *(base.with_name(base.name + extension) for extension in IMAGE_EXTENSIONS)]
        for path in candidates:
            if path.is_file():
                return path
        tried = ", ".join(IMAGE_EXTENSIONS)
        raise DataError(
            f"{record.where}: its {role} is not there, neither as named nor with {tried}; "
            "relative files are looked up in --images, else beside the table; --where COLUMN=VALUE takes only some rows"
        )


def _read_csv(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, restval="")
            rows = list(reader)
            header = list(reader.fieldnames or ())
    except OSError as error:
        raise DataError(f"INPUT: the table {table} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"INPUT: {table} is no CSV in UTF-8: {error}") from error
    if len(set(header)) != len(header):
        raise DataError(f"INPUT: {table} names a column twice: {', '.join(header)}")
    return header, rows


def _need_column(header: list[str], column: str, setting: str, hint: str = "") -> None:
    if column not in header:
        raise DataError(
            f"{setting}: the table has no column {column!r}{did_you_mean(column, header)}{hint}; it has: {', '.join(header)}"
        )


def _record(number: int, row: dict[str, str], names: Mapping[str, str]) -> SourceRecord:
    where = f"row {number}"
    values = {role: row[column].strip() for role, column in names.items()}
    for role in NEEDED:
        if not values[role]:
            raise DataError(f"{where}: column {names[role]!r} is empty: every row needs a {role}")
    return SourceRecord(
        record_id=where,
        where=where,
        class_name=values["class"],
        person=values.get("person") or None,
        exam=values.get("exam") or None,
        fold=_fold(values["fold"], where) if "fold" in values else None,
        plane=_plane(values.get("plane", ""), where),
        handle=(values["file"], values.get("mask", "")),
    )


def _fold(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{where}: fold {text!r}: a whole number from 0")
    return int(text)


def _plane(text: str, where: str) -> str | None:
    if text and text not in PLANES:
        raise DataError(f"{where}: plane {text!r}: allowed: {', '.join(PLANES)}, or empty{did_you_mean(text, PLANES)}")
    return text or None
