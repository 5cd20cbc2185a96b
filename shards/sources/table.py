"""Read images listed in a CSV: columns file and class, and optionally person, exam, plane, fold and mask."""

from __future__ import annotations

import contextlib
import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hsadml_dist.errors import DataError, UsageError, did_you_mean
from hsadml_dist.shards.image_codec import IMAGE_EXTENSIONS, decode_image_file, decode_mask_file
from hsadml_dist.shards.source import (
    PLANES,
    DamagedSampleError,
    SourceListing,
    SourcePixels,
    SourceRecord,
    require_regular_file,
)

ROLES = ("file", "class", "person", "exam", "plane", "fold", "mask")
REQUIRED_ROLES = ("file", "class")
MAX_LISTED = 100
"""Missing files that a message names; it counts the others."""


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Images listed in a CSV.

    Attributes:
        table: The CSV; its first line names the columns.
        images: Folder of relative files; by default the CSV's own.
        columns: Role -> column name, where they differ, for instance ``{"file": "index"}``.
        where: Column name -> value; other rows are ignored.
    """

    name: ClassVar[str] = "table"
    table: Path
    images: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)

    def list_records(self) -> SourceListing:
        """List the rows selected by ``where``; row numbers count all data rows from 1."""
        header, rows = _read_csv(self.table)
        columns = self._resolve_columns(header)
        records = [
            _make_record(number, row, columns)
            for number, row in enumerate(rows, start=1)
            if all(row[column] == value for column, value in self.where.items())
        ]
        if not records:
            rule = " with " + " and ".join(f"{c}={v}" for c, v in self.where.items()) if self.where else ""
            raise DataError(f"INPUT: the table has {len(rows)} rows and none{rule}; nothing to build")
        return SourceListing(records=tuple(records))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Read the image, and the mask if the row names one."""
        image, mask = record.handle
        image_HW = decode_image_file(self._require(image, record, "image"), record.where, "image")
        if not mask:
            return SourcePixels(image=image_HW)
        mask_HW, is_lossy = decode_mask_file(self._require(mask, record, "mask"), record.where)
        if mask_HW.shape != image_HW.shape:
            raise DamagedSampleError(
                record.where, f"its mask has shape {mask_HW.shape}, its image {image_HW.shape}: expected equal shapes"
            )
        return SourcePixels(image=image_HW, mask=mask_HW, mask_is_lossy=is_lossy)

    def fingerprint(self) -> str:
        """Hash the options, the table, and the size and modification time of every file."""
        digest = hashlib.sha256(repr((sorted(self.columns.items()), sorted(self.where.items()))).encode())
        digest.update(self.table.read_bytes())
        missing = []
        for record in self.list_records().records:
            for role, name in zip(("image", "mask"), record.handle, strict=True):
                path = self._find(name) if name else None
                if path is not None:
                    state = path.stat()
                    digest.update(f"{state.st_size} {state.st_mtime_ns}\n".encode())
                elif name:
                    missing.append(f"{role} of {record.where}")
        if missing:
            raise _missing_files(missing)
        return digest.hexdigest()

    def _resolve_columns(self, header: list[str]) -> dict[str, str]:
        """Return role -> column for all roles that the table has."""
        for role, column in self.columns.items():
            if role not in ROLES:
                raise UsageError(
                    f"--columns {role}={column}: unknown role {role!r}; "
                    f"allowed: {', '.join(ROLES)}{did_you_mean(role, ROLES)}"
                )
            _require_column(header, column, f"--columns {role}={column}")
        for column, value in self.where.items():
            _require_column(header, column, f"--where {column}={value}")
        columns = {role: self.columns.get(role, role) for role in ROLES}
        for role in REQUIRED_ROLES:
            _require_column(header, columns[role], f"column for {role!r}", f"; name it with --columns {role}=NAME")
        return {role: column for role, column in columns.items() if column in header}

    def _require(self, name: str, record: SourceRecord, role: str) -> Path:
        path = self._find(name)
        if path is None:
            raise _missing_files([f"{role} of {record.where}"])
        return path

    def _find(self, name: str) -> Path | None:
        """Return the path of a file, tried as named and with each of the usual extensions; None if it is missing."""
        base = (self.images or self.table.parent) / name
        candidates = [base, *(base.parent / f"{base.name}{extension}" for extension in IMAGE_EXTENSIONS)]
        with contextlib.suppress(OSError):  # a name that is too long
            return next((path for path in candidates if path.is_file()), None)
        return None


def _missing_files(missing: Sequence[str]) -> DataError:
    more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
    return DataError(
        f"{len(missing)} files of the table do not exist, neither as named nor with {', '.join(IMAGE_EXTENSIONS)}: "
        f"{', '.join(missing[:MAX_LISTED])}{more}; relative files are searched in --images, by default in the table's "
        "folder; --where COLUMN=VALUE selects rows"
    )


def _read_csv(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        require_regular_file(table)
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, restval="")
            rows = list(reader)
            header = list(reader.fieldnames or ())
    except OSError as error:
        raise DataError(f"INPUT {table}: the table cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"INPUT {table}: not a CSV in UTF-8: {error}") from error
    if len(set(header)) != len(header):
        raise DataError(f"INPUT {table}: duplicate column names: {', '.join(header)}")
    return header, rows


def _require_column(header: list[str], column: str, setting: str, hint: str = "") -> None:
    if column not in header:
        suggestion = did_you_mean(column, header)
        raise DataError(
            f"{setting}: the table has no column {column!r}{suggestion}{hint}; its columns: {', '.join(header)}"
        )


def _make_record(number: int, row: dict[str, str], columns: Mapping[str, str]) -> SourceRecord:
    where = f"row {number}"
    values = {role: row[column].strip() for role, column in columns.items()}
    for role in REQUIRED_ROLES:
        if not values[role]:
            raise DataError(f"{where}: column {columns[role]!r} is empty; every row needs a {role}")
    fold, plane = values.get("fold"), values.get("plane", "")
    if fold is not None and not (fold.isascii() and fold.isdigit()):
        raise DataError(f"{where}: fold {fold!r} is not a whole number; allowed: 0, 1, 2, ...")
    if plane and plane not in PLANES:
        hint = did_you_mean(plane, PLANES)
        raise DataError(f"{where}: plane {plane!r} is unknown; allowed: {', '.join(PLANES)}, or empty{hint}")
    return SourceRecord(
        record_id=where,
        where=where,
        class_name=values["class"],
        person=values.get("person") or None,
        exam=values.get("exam") or None,
        fold=int(fold) if fold is not None else None,
        plane=plane or None,
        handle=(values["file"], values.get("mask", "")),
    )
