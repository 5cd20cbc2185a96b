"""Pictures in a folder per class, as two brain tumour sets on Kaggle have them.

Nickparvar's: ``Training`` and ``Testing``, each with ``glioma``, ``meningioma``, ``notumor``, ``pituitary``. Sartaj's:
the same with ``glioma_tumor``, ``meningioma_tumor``, ``no_tumor``, ``pituitary_tumor``. Class folders alone will do.
Neither set names persons or exams, so that a split can only be by slice. Names of files and of unknown folders may be
identifiers: pictures are named by their place in the order of names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hsadml_dist.data.index import SkippedSample
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.source import SourceListing, SourcePixels, SourceRecord
from hsadml_dist.shards.sources.image_files import IMAGE_EXTENSIONS, decode_image_file

CLASSES = {
    "glioma": "glioma",
    "glioma_tumor": "glioma",
    "meningioma": "meningioma",
    "meningioma_tumor": "meningioma",
    "notumor": "no_tumor",
    "no_tumor": "no_tumor",
    "pituitary": "pituitary",
    "pituitary_tumor": "pituitary",
}
"""Folder, in small letters, to class."""
PARTS = {"testing": "Testing", "training": "Training"}
AUTHOR_FOLDS = {"Testing": 0, "Training": 1}
LITTER = ("thumbs.db", "desktop.ini", "__macosx")
"""What desktops leave behind, beside hidden files."""


@dataclass(frozen=True, kw_only=True)
class ClassFolder:
    """One folder of pictures.

    Attributes:
        part: ``Training``, ``Testing`` or empty.
        class_name: The class.
        pictures: Files by name that a suffix calls pictures, sorted.
        others: How many other files and folders it holds.
    """

    part: str
    class_name: str
    pictures: tuple[Path, ...]
    others: int

    @property
    def where(self) -> str:
        """How an error names the folder."""
        return f"{self.part}, {self.class_name}" if self.part else self.class_name


@dataclass(frozen=True, kw_only=True)
class FoldersSource:
    """A folder per class.

    Attributes:
        folder: Holds ``Training`` and ``Testing``, or the class folders, perhaps in one folder around them.
        author_folds: Prescribe the publisher's parts as folds: 0 ``Testing``, 1 ``Training``.
    """

    name: ClassVar[str] = "folders"
    folder: Path
    author_folds: bool = False

    def list_records(self) -> SourceListing:
        """List the pictures by part, class and name; other files in the class folders are skipped.

        Raises:
            UsageError: The publisher's parts are wanted as folds and are not there.
            DataError: No such folder, a folder of no known class, or no picture at all.
        """
        folders = self._folders()
        if self.author_folds and {folder.part for folder in folders} != set(AUTHOR_FOLDS):
            raise UsageError("--author-folds: INPUT has not both a Training and a Testing folder: leave the option out")
        records = tuple(record for folder in folders for record in self._records(folder))
        if not records:
            raise DataError(f"INPUT: the class folders hold no picture: allowed: {', '.join(IMAGE_EXTENSIONS)}")
        skipped = [skip for folder in folders for skip in _skips(folder)]
        return SourceListing(records=records, skipped=(*skipped, *_outside(self.folder)))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Decode one picture.

        Raises:
            DamagedError: It cannot be decoded.
        """
        (path,) = record.handle
        return SourcePixels(image=decode_image_file(self.folder / path, record.where, "image"))

    def fingerprint(self) -> str:
        """Hash the order of the pictures, their sizes and times of change."""
        digest = hashlib.sha256(f"{self.name} {self.author_folds}\n".encode())
        for folder in self._folders():
            digest.update(f"{folder.where} {folder.others}\n".encode())
            for path in folder.pictures:
                digest.update(os.fsencode(path.name) + f" {_state(path)}\n".encode())
        return digest.hexdigest()

    def _folders(self) -> list[ClassFolder]:
        if not self.folder.is_dir():
            raise DataError(f"INPUT {self.folder}: no such folder: folders needs the folder of the class folders")
        return list(_parts(_unwrapped(self.folder)))

    def _records(self, folder: ClassFolder) -> Iterator[SourceRecord]:
        author_fold = AUTHOR_FOLDS.get(folder.part)
        for number, path in enumerate(folder.pictures, start=1):
            yield SourceRecord(
                record_id=f"{folder.part}/{folder.class_name}/{number}",
                where=f"{folder.where}: image {number} by name",
                class_name=folder.class_name,
                fold=author_fold if self.author_folds else None,
                author_fold=author_fold,
                handle=(str(path.relative_to(self.folder)),),
            )


def _skips(folder: ClassFolder) -> Iterator[SkippedSample]:
    for number in range(1, folder.others + 1):
        yield SkippedSample(
            where=f"{folder.where}: other entry {number} of {folder.others}",
            reason="no picture by its suffix; allowed: " + ", ".join(IMAGE_EXTENSIONS),
        )


def _outside(folder: Path) -> Iterator[SkippedSample]:
    """Count the pictures that lie beside the class folders, and so have no class."""
    top = _unwrapped(folder)
    levels = {folder, top, *(path for name, path in _subfolders(top).items() if name in PARTS)}
    count = sum(_is_picture(entry) for level in levels for entry in _visible(level))
    for number in range(1, count + 1):
        yield SkippedSample(where=f"picture {number} of {count} outside the class folders", reason="has no class")


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return not entry.is_dir() and entry.name.lower().endswith(IMAGE_EXTENSIONS)


def _unwrapped(folder: Path) -> Path:
    """Look through one folder around everything, as archives often have."""
    inside = _subfolders(folder)
    known = any(name in PARTS or name in CLASSES for name in inside)
    return next(iter(inside.values())) if len(inside) == 1 and not known else folder


def _parts(folder: Path) -> Iterator[ClassFolder]:
    """Yield the class folders, Testing before Training, classes by alphabet."""
    inside = _subfolders(folder)
    parts = {name: path for name, path in inside.items() if name in PARTS}
    _refuse_unknown(inside, PARTS if parts else CLASSES)
    if not inside:
        raise DataError(f"INPUT: the folder holds no class folders: {_known()}")
    if not parts:
        yield from _classes("", inside)
    for name, path in sorted(parts.items()):
        classes = _subfolders(path)
        _refuse_unknown(classes, CLASSES)
        yield from _classes(PARTS[name], classes)


def _classes(part: str, folders: Mapping[str, Path]) -> list[ClassFolder]:
    names = [CLASSES[name] for name in folders]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"INPUT: {part + ' has ' if part else ''}two folders of one class ({name}): put them together"
            )
    content = {CLASSES[name]: _visible(path) for name, path in folders.items()}
    return [_class_folder(part, name, content[name]) for name in sorted(content)]


def _class_folder(part: str, class_name: str, entries: list[os.DirEntry[str]]) -> ClassFolder:
    pictures = [entry for entry in entries if _is_picture(entry)]
    return ClassFolder(
        part=part,
        class_name=class_name,
        pictures=tuple(Path(entry.path) for entry in pictures),
        others=len(entries) - len(pictures),
    )


def _subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in ``folder`` by name in small letters; a name that occurs in two spellings is refused."""
    found: dict[str, Path] = {}
    for entry in _visible(folder):
        if entry.is_dir():
            if entry.name.lower() in found:
                raise DataError("INPUT: two folders have one name but for capital letters: put them together")
            found[entry.name.lower()] = Path(entry.path)
    return found


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder by name, bytewise, without what is hidden or litter."""
    try:
        entries = [e for e in os.scandir(folder) if not e.name.startswith(".") and e.name.lower() not in LITTER]
    except OSError as error:
        raise DataError(f"INPUT: a folder in it cannot be read: {error.strerror}") from error
    return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def _refuse_unknown(folders: Mapping[str, Path], known: Mapping[str, str]) -> None:
    """Refuse folders of another name, by number alone."""
    count = sum(name not in known for name in folders)
    if count:
        raise DataError(
            f"INPUT: {count} of {len(folders)} folders are of no known class: {_known()}; "
            "for other classes list the pictures in a CSV and take SOURCE table"
        )


def _known() -> str:
    return f"known: {', '.join(CLASSES)}, or Training and Testing with these inside"


def _state(path: Path) -> tuple[int, int]:
    """Return size and time of change; a link that leads nowhere has none."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns
