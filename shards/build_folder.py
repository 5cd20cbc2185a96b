"""The hidden folder in which a build writes: no half-written shards are visible, and a killed build can be resumed.

A note is kept for each finished tar. A second build of the same inputs (same fingerprint) reuses the tars that have a
note; a build of other inputs starts from nothing. At the end the notes are removed, and one rename moves the folder
into place.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hsadml_dist import atomic
from hsadml_dist.data.contents import ContentHashes
from hsadml_dist.data.index import ShardFile, SkippedSample, parse_row, samples_table
from hsadml_dist.errors import DataError
from hsadml_dist.json_parsing import INVALID, parse_json
from hsadml_dist.private_files import UntrustedFileError, open_private_file, require_own_folder
from hsadml_dist.shards.writer import ShardResult

LOCK = ".lock"
FINGERPRINT = ".fingerprint"


@dataclass(frozen=True, kw_only=True)
class BuildFolder:
    """The folder ``path``, which :meth:`publish` renames to ``out``."""

    path: Path
    out: Path

    def finished_shard(self, number: int) -> ShardResult | None:
        """Return the result of tar ``number`` if an interrupted build finished it, otherwise None."""
        try:
            first, *lines = self._note(number).read_bytes().splitlines()
            values = parse_json(first)
            file = ShardFile(**values["file"])
            skipped = tuple(SkippedSample(**skip) for skip in values["skipped"])
            lossy_masks = int(values.get("lossy_masks", 0))
            rows = tuple(parse_row(line) for line in lines)
            contents = tuple(ContentHashes(**hashes) for hashes in values["contents"])
            complete = (self.path / file.name).stat().st_size == file.bytes
        except (FileNotFoundError, *INVALID):
            return None
        if not complete:
            return None
        return ShardResult(
            number=number, file=file, rows=rows, contents=contents, skipped=skipped, lossy_masks=lossy_masks
        )

    def record_shard(self, result: ShardResult) -> None:
        """Write the note of a finished tar, for a later build to resume from."""
        first = {
            "file": asdict(result.file),
            "skipped": [asdict(skip) for skip in result.skipped],
            "contents": [asdict(hashes) for hashes in result.contents],
            "lossy_masks": result.lossy_masks,
        }
        content = json.dumps(first).encode() + b"\n" + samples_table(result.rows)
        atomic.write_bytes(self._note(result.number), content, durable=False)

    def publish(self) -> None:
        """Remove all notes and move the folder into place.

        Raises:
            DataError: ``out`` was filled in the meantime.
        """
        for note in self.path.glob(".*"):
            note.unlink()
        try:
            os.rename(self.path, self.out)
        except OSError as error:
            raise DataError(f"--out {self.out}: the folder cannot be moved into place: {error.strerror}") from error

    def _note(self, number: int) -> Path:
        return self.path / f".done-{number:05d}"


def require_empty_folder(out: Path) -> None:
    """Raise DataError unless ``out`` is absent or an empty folder."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise DataError(f"--out {out}: not a folder; name a new or an empty folder")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"--out {out}: not empty, and nothing is overwritten; name a new or an empty folder")


@contextmanager
def open_build_folder(out: Path, fingerprint: str) -> Iterator[BuildFolder]:
    """Lock the build folder of ``out`` for this process, and keep the tars of an interrupted build of the same inputs.

    Raises:
        DataError: ``out`` is filled, another process builds it, or a file cannot be written.
    """
    require_empty_folder(out)
    path = out.with_name(f".{out.name}.building")
    try:
        path.mkdir(parents=True, exist_ok=True)
        require_own_folder(path)
        lock = open_private_file(path / LOCK, os.O_RDWR | os.O_CREAT)
    except UntrustedFileError as error:
        raise DataError(f"--out {out}: {error}") from error
    except OSError as error:
        raise DataError(f"--out {out}: {path.parent} cannot be written: {error.strerror}") from error
    try:
        _lock(lock, out)
        _discard_other_build(path, fingerprint)
        yield BuildFolder(path=path, out=out)
    except OSError as error:
        raise DataError(
            f"--out {out}: cannot be written: {error.strerror or error}; finished shards are kept, "
            "repeat the command to resume"
        ) from error
    finally:
        os.close(lock)


def _lock(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"--out {out}: another process is building it") from error
    except OSError as error:
        raise DataError(
            f"--out {out}: its file system does not support locks ({error.strerror}); "
            "build on another file system and move the folder"
        ) from error
    if os.fstat(lock).st_nlink == 0:
        raise DataError(f"--out {out}: another process has just built it")


def _discard_other_build(path: Path, fingerprint: str) -> None:
    """Empty the folder, except for the lock, unless it holds a build of the same fingerprint."""
    stored = path / FINGERPRINT
    if stored.exists() and stored.read_text() == fingerprint:
        return
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
    stored.write_text(fingerprint)
