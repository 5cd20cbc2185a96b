"""Find the files of Jun Cheng's dataset: ``1.mat`` ... ``3064.mat``, loose, in the four original zips, or both.

Files are known by number. Other names may hold identifiers, and are counted but never repeated.
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
from hsadml_dist.shards.source import DamagedSampleError, scan_folder, size_and_mtime
from hsadml_dist.shards.sources.mat_file import SLICES

ORIGINAL_ZIPS = tuple(f"brainTumorDataPublic_{span}.zip" for span in ("1-766", "767-1532", "1533-2298", "2299-3064"))
OUTER_ZIP = "1512427.zip"
FOLDS_NAME = "cvind.mat"
MAX_DEPTH = 2
"""Levels of folders below INPUT that are searched."""
MAX_FILE_BYTES = 1 << 28
"""No slice is as large: a member of a damaged zip that claims more is not unpacked."""
ZIP_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, ValueError)
"""Exceptions of zipfile for content that is damaged, encrypted or packed in an unknown way."""


@dataclass(frozen=True, kw_only=True)
class FileLocation:
    """Location of one file.

    Attributes:
        path: The file, or the zip that holds it.
        member: Its name in the zip; empty for a loose file.
        size: Unpacked, in bytes.
        state: Changes with the content: the modification time of a loose file, the CRC of a member.
    """

    path: Path
    member: str
    size: int
    state: int


@dataclass(kw_only=True)
class DatasetFiles:
    """Files of the dataset in a folder.

    Attributes:
        folds: All files named ``cvind.mat``.
        others: Number of ``.mat`` files with other names.
        outer: True if the outer archive, which holds the zips, is there.
    """

    slices: dict[int, FileLocation] = field(default_factory=dict)
    folds: list[FileLocation] = field(default_factory=list)
    others: int = 0
    outer: bool = False

    def add(self, location: FileLocation) -> None:
        """Add a file by its name."""
        name = PurePosixPath(location.member).name or location.path.name
        match = re.fullmatch(r"([1-9][0-9]{0,3})\.mat", name, re.IGNORECASE)
        if match and int(match[1]) <= SLICES:
            self._add_slice(int(match[1]), location)
        elif name.lower() == FOLDS_NAME:
            self.folds.append(location)
        elif name.lower().endswith(".zip"):
            self.outer = True
        else:
            self.others += 1

    def _add_slice(self, number: int, location: FileLocation) -> None:
        """Keep the first of equal copies: loose files come before members of zips."""
        first = self.slices.setdefault(number, location)
        both_zipped = first.member and location.member
        if first.size != location.size or (both_zipped and first.state != location.state):
            raise DataError(f"INPUT: two different files {number}.mat; remove one")


def find_files(folder: Path) -> DatasetFiles:
    """Find slices and folds in ``folder``, up to two levels below it, and in the zips there.

    Raises:
        DataError: The folder or a zip cannot be read, no slice is there, or one slice has two different files.
    """
    if not folder.is_dir():
        raise DataError(f"INPUT {folder}: no such folder; figshare needs the folder of the .mat files or original zips")
    paths = sorted(_walk(folder, MAX_DEPTH), key=os.fsencode)
    zips = [path for path in paths if path.suffix.lower() == ".zip"]
    files = DatasetFiles(outer=any(path.name.lower() == OUTER_ZIP for path in zips))
    for path in paths:
        if path.suffix.lower() == ".mat":
            size, mtime = size_and_mtime(path)  # zeros for a broken link: its slice is reported as unreadable
            files.add(FileLocation(path=path, member="", size=size, state=mtime))
    for number, path in enumerate(zips, start=1):
        for location in _locate_members(path, f"zip {number} of {len(zips)} by name"):
            files.add(location)
    if not files.slices:
        hint = f"; unpack the outer archive ({OUTER_ZIP}) first" if files.outer else ""
        raise DataError(f"INPUT: the folder holds neither N.mat files nor the original zips{hint}")
    return files


def read_zip_member(path: Path, member: str, where: str) -> bytes:
    """Read one file of a zip and check its CRC; the zip stays open in this process.

    Raises:
        DamagedSampleError: It cannot be unpacked.
    """
    try:
        return _open_zip(path, os.getpid()).read(member)
    except (*ZIP_ERRORS, KeyError, MemoryError) as error:
        raise DamagedSampleError(where, f"cannot be unpacked from its zip ({type(error).__name__})") from error


def read_folds(locations: Iterable[FileLocation]) -> bytes | None:
    """Return the content of ``cvind.mat``, or None if there is none.

    Raises:
        DataError: It cannot be read, or there are several and they differ.
    """
    contents = {_read_small_file(location) for location in locations}
    if len(contents) > 1:
        raise DataError(f"INPUT: {len(contents)} different {FOLDS_NAME}; keep one")
    return contents.pop() if contents else None


def _read_small_file(location: FileLocation) -> bytes:
    if location.size > MAX_FILE_BYTES:
        raise DataError(f"{FOLDS_NAME}: {location.size} bytes: not a file of the dataset")
    if location.member:
        return read_zip_member(location.path, location.member, FOLDS_NAME)
    try:
        return location.path.read_bytes()
    except OSError as error:
        raise DataError(f"{FOLDS_NAME}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=8)
def _open_zip(path: Path, process: int) -> zipfile.ZipFile:
    """Open a zip once per process: a forked process would share its parent's file offset."""
    return zipfile.ZipFile(path)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Yield all files that are not hidden. Links are followed; the limit on depth ends cycles."""
    for entry in scan_folder(folder):
        if entry.name == "__MACOSX":
            continue
        if entry.is_file() or (entry.is_symlink() and not entry.is_dir()):
            yield Path(entry.path)
        elif entry.is_dir() and depth:
            yield from _walk(Path(entry.path), depth - 1)


def _locate_members(path: Path, generic_name: str) -> list[FileLocation]:
    """List the ``.mat`` files of one zip, and its inner zips, which identify the outer archive."""
    name = path.name if path.name in (*ORIGINAL_ZIPS, OUTER_ZIP) else generic_name
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except ZIP_ERRORS as error:
        raise DataError(f"INPUT: {name} is truncated, damaged or not a zip; download it again") from error
    return [
        FileLocation(path=path, member=info.filename, size=info.file_size, state=info.CRC)
        for info in infos
        if info.filename.lower().endswith((".mat", ".zip"))
        and not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(info.filename).parts)
    ]
