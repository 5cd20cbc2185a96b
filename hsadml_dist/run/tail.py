"""The end of a file of rows, however long the file is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
