"""A build's own folder beside the one it makes: nothing half-written is seen, and a killed build goes on.

Each finished tar is noted in a sidecar. A second build of the same inputs (same fingerprint) keeps the noted tars; one
of other inputs starts anew. At the end the notes go and one rename puts the folder in place.
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

from hsadml_dist.data.index import ShardFile, SkippedSample, parse_row, samples_table
from hsadml_dist.errors import DataError
from hsadml_dist.shards.writer import ShardResult

LOCK = ".lock"
FINGERPRINT = ".fingerprint"


@dataclass(frozen=True, kw_only=True)
class BuildFolder:
    """The folder in which a build writes until :meth:`publish`."""

    folder: Path
    out: Path

    def finished(self, number: int) -> ShardResult | None:
        """Return what an earlier, killed build noted of tar ``number``, if that tar is whole."""
        try:
            first, *lines = self._note(number).read_bytes().splitlines()
            values = json.loads(first)
            file = ShardFile(**values["file"])
            skipped = tuple(SkippedSample(**skip) for skip in values["skipped"])
            rows = tuple(parse_row(line) for line in lines)
            whole = (self.folder / file.name).stat().st_size == file.bytes
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return None
        return ShardResult(number=number, file=file, rows=rows, skipped=skipped) if whole else None

    def keep(self, result: ShardResult) -> None:
        """Note a finished tar for a later build."""
        note = self._note(result.number)
        temporary = note.with_name(note.name + ".tmp")
        first = {"file": asdict(result.file), "skipped": [asdict(skip) for skip in result.skipped]}
        temporary.write_bytes(json.dumps(first).encode() + b"\n" + samples_table(result.rows))
        os.replace(temporary, note)

    def publish(self) -> None:
        """Remove all notes and move the folder to its place.

        Raises:
            DataError: The place was filled meanwhile.
        """
        for note in self.folder.glob(".*"):
            note.unlink()
        try:
            os.rename(self.folder, self.out)
        except OSError as error:
            raise DataError(f"--out {self.out}: cannot be put in place: {error.strerror}") from error

    def _note(self, number: int) -> Path:
        return self.folder / f".done-{number:05d}"


def require_empty_folder(out: Path) -> None:
    """Raise DataError unless ``out`` is absent or an empty folder."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise DataError(f"--out {out}: not a folder; name a new or an empty one")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"--out {out}: not empty, and nothing is overwritten; name a new or an empty folder")


@contextmanager
def open_build_folder(out: Path, fingerprint: str) -> Iterator[BuildFolder]:
    """Hold the build folder of ``out`` for this process, with what an equal, killed build left in it.

    Raises:
        DataError: ``out`` is filled, another process builds it, or the disk refuses.
    """
    require_empty_folder(out)
    folder = out.with_name(f".{out.name}.building")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataError(f"--out {out}: {folder.parent} cannot be written: {error.strerror}") from error
    try:
        _lock(lock, out)
        _prepare(folder, fingerprint)
        yield BuildFolder(folder=folder, out=out)
    except OSError as error:
        raise DataError(
            f"--out {out}: cannot be written: {error.strerror or error}; what is done is kept, build again to go on"
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
            f"--out {out}: its file system cannot lock ({error.strerror}); build elsewhere, move"
        ) from error
    if os.fstat(lock).st_nlink == 0:
        raise DataError(f"--out {out}: another process has just built it")


def _prepare(folder: Path, fingerprint: str) -> None:
    """Empty the folder, all but the lock, unless it holds a build of the same fingerprint."""
    noted = folder / FINGERPRINT
    if noted.exists() and noted.read_text() == fingerprint:
        return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
    noted.write_text(fingerprint)
