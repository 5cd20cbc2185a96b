"""Append-only JSON Lines files: one write per row, so that a row is complete or absent.

A full disk or a crash can cut a row short all the same. The next row ends such a line, and readers skip it: a damaged
row must not block a run whose checkpoints are intact.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hsadml_dist.errors import RunError, os_error_reason
from hsadml_dist.json_parsing import parse_json_object

Kinds = type | tuple[type, ...]

log = logging.getLogger(__name__)


class JsonlWriter:
    """Append rows to a file that has no other writer at the time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._may_be_cut = True

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; floats keep all their digits.

        Raises:
            RunError: The row could not be written, or only in part.
        """
        line = (json.dumps(row) + "\n").encode()
        try:
            if self._may_be_cut and self._is_cut():
                line = b"\n" + line
            self._may_be_cut = True
            written = os.write(self._file, line)
        except OSError as fault:
            raise RunError(f"{self._path}: a row cannot be written: {os_error_reason(fault)}") from fault
        if written < len(line):
            raise RunError(f"{self._path}: a row was written only in part: no space left")
        self._may_be_cut = False

    def _is_cut(self) -> bool:
        """Return whether the last row has no end."""
        size = os.fstat(self._file).st_size
        return size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_jsonl(path: Path, kinds: Mapping[str, Kinds] = MappingProxyType({})) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file; a missing file has none. Damaged rows are skipped with a warning.

    Args:
        path: The file. A last line without an end is being written, or was cut short by a crash: no warning.
        kinds: Fields that a row must have, and their types.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                continue
            try:
                row = parse_json_object(line)
            except ValueError as error:
                log.warning("%s: line %d is damaged and skipped: %s", path, number, error)
                continue
            if wrong := [name for name, kind in kinds.items() if not isinstance(row.get(name), kind)]:
                log.warning("%s: line %d is damaged and skipped: no valid %s", path, number, ", ".join(wrong))
                continue
            yield row


def tail_bytes(path: Path, limit: int) -> bytes:
    """Return at most the last ``limit`` bytes of a file; a missing file counts as empty."""
    try:
        with path.open("rb", buffering=0) as file:
            start = max(0, os.fstat(file.fileno()).st_size - limit)
            return os.pread(file.fileno(), limit, start)
    except OSError:
        return b""


def tail_jsonl(path: Path, limit: int) -> list[dict[str, Any]]:
    """Return the complete rows in the last ``limit`` bytes of a file, in file order.

    A row that is being written, or that a crash cut short, is skipped.
    """
    # The first piece may be the end of a row, which does not parse to an object; the last one is not yet a line.
    rows = []
    for line in tail_bytes(path, limit).split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            rows.append(parse_json_object(line))
    return rows
