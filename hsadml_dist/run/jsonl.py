"""Append-only JSON Lines files: one write per row, so that a row is complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hsadml_dist.errors import RunError, os_error_reason


class JsonlWriter:
    """Appends rows to one file of one attempt; that attempt's rank 0 is its only writer."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; floats keep all their digits.

        Raises:
            RunError: The row could not be written, or not whole.
        """
        line = (json.dumps(row) + "\n").encode()
        try:
            written = os.write(self._file, line)
        except OSError as fault:
            raise RunError(f"{self._path}: a row cannot be written: {os_error_reason(fault)}") from fault
        if written < len(line):
            raise RunError(f"{self._path}: a row cannot be written whole: no space left")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file; a last line that was cut by a crash is left out. No file: no rows."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def tail_bytes(path: Path, most: int) -> bytes:
    """Return at most the last ``most`` bytes of a file; nothing if there is none."""
    try:
        with path.open("rb", buffering=0) as file:
            start = max(0, os.fstat(file.fileno()).st_size - most)
            return os.pread(file.fileno(), most, start)
    except OSError:
        return b""


def tail_jsonl(path: Path, most: int) -> list[dict[str, Any]]:
    """Return the whole rows among the last ``most`` bytes of a file, in the file's order.

    A row that is still being written, or was cut by a crash, is left out.
    """
    # The first piece may be the end of a row, which is no object, and the last one is not yet a line.
    return [row for line in tail_bytes(path, most).split(b"\n")[:-1] for row in _parsed(line)]


def _parsed(line: bytes) -> list[dict[str, Any]]:
    try:
        row = json.loads(line)
    except ValueError:
        return []
    return [row] if isinstance(row, dict) else []
