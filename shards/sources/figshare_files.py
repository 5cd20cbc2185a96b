"""Where the files of Jun Cheng's data set lie: as ``1.mat`` ... ``3064.mat``, in the four original zips, or both.

Files are known by number; other names may hold identifiers and are counted, never repeated.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from hsadml_dist.errors import DataError
from hsadml_dist.shards.source import DamagedSampleError
from hsadml_dist.shards.sources.mat_file import FILES

ORIGINAL_ZIPS = tuple(f"brainTumorDataPublic_{span}.zip" for span in ("1-766", "767-1532", "1533-2298", "2299-3064"))
OUTER_ZIP = "1512427.zip"
FOLDS_NAME = "cvind.mat"
DEPTH = 2
"""Folders below INPUT that are looked into."""
MOST_BYTES = 1 << 28
"""No slice is as large: a damaged zip that claims more is not unpacked."""
ZIP_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, ValueError)
"""What zipfile raises on content that is damaged, locked by a password or packed in an unknown way."""


@dataclass(frozen=True, kw_only=True)
class FileLocation:
    """Where one file lies.

    Attributes:
        path: The file, or the zip that holds it.
        member: Its name in the zip; empty for a file.
        size: Its size in bytes, unpacked.
        state: What changes with its content: a file's time of change, a member's CRC.
    """

    path: Path
    member: str
    size: int
    state: int


@dataclass(kw_only=True)
class DatasetFiles:
    """What a folder holds.

    Attributes:
        slices: Number of the slice to its place.
        folds: All that are named ``cvind.mat``.
        others: How many ``.mat`` files have no name of the data set.
        outer: Whether the outer archive, which holds the zips, lies there.
    """

    slices: dict[int, FileLocation] = field(default_factory=dict)
    folds: list[FileLocation] = field(default_factory=list)
    others: int = 0
    outer: bool = False


def find_files(folder: Path) -> DatasetFiles:
    """Find slices and folds in ``folder``, up to two folders below it, and in the zips there.

    Raises:
        DataError: The folder or a zip cannot be read, no slice is there, or two different files are one slice.
    """
    if not folder.is_dir():
        raise DataError(f"INPUT {folder}: no such folder: figshare needs the folder of the .mat files or original zips")
    paths = sorted(_walk(folder, DEPTH), key=os.fsencode)
    zips = [path for path in paths if path.suffix.lower() == ".zip"]
    found = DatasetFiles(outer=any(path.name.lower() == OUTER_ZIP for path in zips))
    for path in paths:
        if path.suffix.lower() == ".mat":
            _sort_in(found, _file(path))
    for number, path in enumerate(zips, start=1):
        for place in _members(path, f"zip {number} of {len(zips)} by name"):
            _sort_in(found, place)
    if not found.slices:
        hint = f"; the outer archive ({OUTER_ZIP}) is there: unpack it first" if found.outer else ""
        raise DataError(f"INPUT: the folder holds neither N.mat files nor the original zips{hint}")
    return found


def read_member(path: Path, member: str, where: str) -> bytes:
    """Read one file of a zip, its CRC checked; the zip stays open in this process.

    Raises:
        DamagedError: It cannot be unpacked.
    """
    try:
        return _archive(path, os.getpid()).read(member)
    except (*ZIP_ERRORS, KeyError, MemoryError) as error:
        raise DamagedSampleError(where, f"cannot be unpacked from its zip ({type(error).__name__})") from error


def read_folds(places: Iterable[FileLocation]) -> bytes | None:
    """Return the content of ``cvind.mat``, or None where there is none.

    Raises:
        DataError: It cannot be read, or several are there and differ.
    """
    contents = {_content(place) for place in places}
    if len(contents) > 1:
        raise DataError(f"INPUT: {len(contents)} different {FOLDS_NAME} are there: leave one")
    return contents.pop() if contents else None


def _content(place: FileLocation) -> bytes:
    if place.size > MOST_BYTES:
        raise DataError(f"{FOLDS_NAME}: {place.size} bytes: not the data set's own")
    if place.member:
        return read_member(place.path, place.member, FOLDS_NAME)
    try:
        return place.path.read_bytes()
    except OSError as error:
        raise DataError(f"{FOLDS_NAME}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=8)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """Open a zip once a process: a forked one would share its parent's place in the file."""
    return zipfile.ZipFile(path)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Yield all files but hidden ones; links are followed, which the depth keeps from going round."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"INPUT: a folder in it cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_file() or (entry.is_symlink() and not entry.is_dir()):
            yield Path(entry.path)
        elif entry.is_dir() and depth:
            yield from _walk(Path(entry.path), depth - 1)


def _file(path: Path) -> FileLocation:
    """Return a file's place; a link that leads nowhere has size 0, so that its slice is counted as unreadable."""
    try:
        state = path.stat()
    except OSError:
        return FileLocation(path=path, member="", size=0, state=0)
    return FileLocation(path=path, member="", size=state.st_size, state=state.st_mtime_ns)


def _members(path: Path, by_place: str) -> list[FileLocation]:
    """List the ``.mat`` files of one zip, and its inner zips, which show the outer archive."""
    name = path.name if path.name in (*ORIGINAL_ZIPS, OUTER_ZIP) else by_place
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except ZIP_ERRORS as error:
        raise DataError(f"INPUT: {name} is cut short, damaged or no zip: fetch it again") from error
    return [
        FileLocation(path=path, member=info.filename, size=info.file_size, state=info.CRC)
        for info in infos
        if info.filename.lower().endswith((".mat", ".zip")) and not _is_hidden(info.filename)
    ]


def _is_hidden(member: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(member).parts)


def _sort_in(found: DatasetFiles, place: FileLocation) -> None:
    name = PurePosixPath(place.member).name or place.path.name
    number = _number(name)
    if number is not None:
        _add_slice(found, number, place)
    elif name.lower() == FOLDS_NAME:
        found.folds.append(place)
    elif name.lower().endswith(".zip"):
        found.outer = True
    else:
        found.others += 1


def _number(name: str) -> int | None:
    match = re.fullmatch(r"([1-9][0-9]{0,3})\.mat", name, re.IGNORECASE)
    return int(match[1]) if match and int(match[1]) <= FILES else None


def _add_slice(found: DatasetFiles, number: int, place: FileLocation) -> None:
    """Take the first of equal copies: a file before a zip's member."""
    first = found.slices.setdefault(number, place)
    differs = first.size != place.size or (first.member and place.member and first.state != place.state)
    if differs:
        raise DataError(f"INPUT: {number}.mat is there twice, and the two differ: leave one")
