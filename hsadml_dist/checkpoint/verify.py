"""Whether a checkpoint's files are those that were written; asked before any reader opens one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hsadml_dist.checkpoint.layout import COMMIT, LAYOUT_VERSION, MANIFEST


def fault_in(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, as words, or None if every file is as its manifest says."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(manifest).hexdigest().encode() != (folder / COMMIT).read_bytes().strip():
            return f"{MANIFEST} is not the one that was committed"
        record = json.loads(manifest)
        if record["layout"] != LAYOUT_VERSION:
            return f"layout {record['layout']} is unknown; this version reads layout {LAYOUT_VERSION}"
        faults = (_file_fault(folder / name, entry) for name, entry in record["files"].items())
        return next((fault for fault in faults if fault), None)
    except OSError as fault:
        return f"{Path(fault.filename).name}: {fault.strerror}"


def _file_fault(path: Path, entry: dict[str, int | str]) -> str | None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"{path.name} has {size} bytes, not {entry['bytes']}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == entry["sha256"] else f"{path.name} does not match its SHA-256"
