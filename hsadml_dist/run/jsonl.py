"""Append-only JSON Lines files: one write per row, so that a row is complete or absent."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hsadml_dist.errors import RunError, os_error_reason
from hsadml_dist.json_parsing import parse_json_object


class JsonlWriter:
    """Append rows to a file of an attempt, whose rank 0 is the only writer."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; floats keep all their digits.

        Raises:
            RunError: The row could not be written, or only in part.
        """
        line = (json.dumps(row) + "\n").encode()
        try:
            written = os.write(self._file, line)
        except OSError as fault:
            raise RunError(f"{self._path}: a row cannot be written: {os_error_reason(fault)}") from fault
        if written < len(line):
            raise RunError(f"{self._path}: a row was written only in part: no space left")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_jsonl(path: Path, *, skip_damaged: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, without a last line that a crash cut short; a missing file has no rows.

    Raises:
        RunError: A line is not a JSON object, unless such lines are to be skipped.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                continue
            try:
                row = _parse_row(path, number, line)
            except RunError:
                if skip_damaged:
                    continue
                raise
            yield row


def _parse_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(line)
    except ValueError as error:
        raise RunError(f"{path}: line {number} is damaged: {error}") from error


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
