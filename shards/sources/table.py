"""Read images listed in a CSV: columns file and class, and optionally person, exam, plane, fold and mask."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hsadml_dist.errors import DataError, UsageError, did_you_mean
from hsadml_dist.shards.image_codec import IMAGE_EXTENSIONS, decode_image_file, decode_mask_file
from hsadml_dist.shards.source import PLANES, DamagedSampleError, SourceListing, SourcePixels, SourceRecord

ROLES = ("file", "class", "person", "exam", "plane", "fold", "mask")
REQUIRED_ROLES = ("file", "class")


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
        image_HW = decode_image_file(self._find(image, record, "image"), record.where, "image")
        if not mask:
            return SourcePixels(image=image_HW)
        mask_HW, is_lossy = decode_mask_file(self._find(mask, record, "mask"), record.where)
        if mask_HW.shape != image_HW.shape:
            raise DamagedSampleError(
                record.where, f"its mask has shape {mask_HW.shape}, its image {image_HW.shape}: expected equal shapes"
            )
        return SourcePixels(image=image_HW, mask=mask_HW, mask_is_lossy=is_lossy)

    def fingerprint(self) -> str:
        """Hash the options, the table, and the size and modification time of every file."""
        digest = hashlib.sha256(repr((sorted(self.columns.items()), sorted(self.where.items()))).encode())
        digest.update(self.table.read_bytes())
        for record in self.list_records().records:
            for role, name in zip(("image", "mask"), record.handle, strict=True):
                if name:
                    state = self._find(name, record, role).stat()
                    digest.update(f"{state.st_size} {state.st_mtime_ns}\n".encode())
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

    def _find(self, name: str, record: SourceRecord, role: str) -> Path:
        """Return the path of a file, tried as named and with each of the usual extensions."""
        base = (self.images or self.table.parent) / name
        candidates = [base, *(base.with_name(base.name + extension) for extension in IMAGE_EXTENSIONS)]
        for path in candidates:
            if path.is_file():
                return path
        raise DataError(
            f"{record.where}: its {role} does not exist, neither as named nor with {', '.join(IMAGE_EXTENSIONS)}; "
            "relative files are searched in --images, by default in the table's folder; "
            "--where COLUMN=VALUE selects rows"
        )


def _read_csv(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
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
