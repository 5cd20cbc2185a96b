"""Whether a checkpoint's files are those that were written; asked before any reader opens one."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hsadml_dist.checkpoint.layout import COMMIT, LAYOUT_VERSION, MANIFEST, PROGRESS, CheckpointName

MANIFEST_BYTES = 64 * 2**20
"""Far more than a manifest takes: a file that has become huge is not read into memory."""


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, as words, or None if every file is as its manifest says.

    Files that the manifest does not name are no fault, and no reader opens them.
    """
    try:
        return next(_faults(folder), None)
    except OSError as fault:
        return f"{Path(fault.filename or folder).name}: {fault.strerror or fault}"


def _faults(folder: Path) -> Iterator[str]:
    manifest = _content(folder / MANIFEST)
    if hashlib.sha256(manifest).hexdigest().encode() != _content(folder / COMMIT).strip():
        yield f"{MANIFEST} is not the one that was committed"
        return
    try:
        record = json.loads(manifest)
    except ValueError:
        yield f"{MANIFEST} is not JSON"
        return
    fault = _manifest_fault(record, CheckpointName.parse(folder.name))
    if fault:
        yield fault
        return
    for name, entry in record["files"].items():
        yield from _file_faults(folder / name, entry)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MANIFEST_BYTES)


def _manifest_fault(record: Any, name: CheckpointName | None) -> str | None:
    """Return what is wrong with a manifest's content, or None."""
    if not isinstance(record, dict) or "layout" not in record:
        return f"{MANIFEST} names no layout"
    if record["layout"] != LAYOUT_VERSION:
        return f"layout {record['layout']} is unknown; this version reads layout {LAYOUT_VERSION}"
    if name is not None and (record.get("step"), record.get("attempt")) != (name.step, name.attempt):
        return f"{MANIFEST} is that of step {record.get('step')}, attempt {record.get('attempt')}"
    files = record.get("files")
    if not isinstance(files, dict) or PROGRESS not in files:
        return f"{MANIFEST} does not name {PROGRESS}"
    wrong = (file for file, entry in files.items() if not _is_entry(file, entry))
    return next((f"{MANIFEST} has no size and SHA-256 of {file!r}" for file in wrong), None)


def _is_entry(file: str, entry: Any) -> bool:
    # A name, not a path: nothing outside the checkpoint is any reader's business.
    plain = Path(file).name == file
    return plain and isinstance(entry, dict) and {"bytes": int, "sha256": str} == {k: type(entry[k]) for k in entry}


def _file_faults(path: Path, entry: dict[str, int | str]) -> Iterator[str]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            yield f"{path.name} is no plain file"
            return
        if found.st_size != entry["bytes"]:
            yield f"{path.name} has {found.st_size} bytes, not {entry['bytes']}"
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as fault:  # one that comes while reading does not say of which file
        yield f"{path.name}: {fault.strerror or fault}"
        return
    if digest != entry["sha256"]:
        yield f"{path.name} does not match its SHA-256"
