"""Read images from one folder per class, the layout of two brain tumour sets on Kaggle.

Nickparvar's set has ``Training`` and ``Testing``, each with ``glioma``, ``meningioma``, ``notumor``, ``pituitary``.
Sartaj's set has the same parts with ``glioma_tumor``, ``meningioma_tumor``, ``no_tumor``, ``pituitary_tumor``. Class
folders without parts are accepted too. Neither set names patients or exams, so only a split by slice is possible. Names
of files and of unknown folders may be identifiers: messages name images by their position in the order of names.
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
from hsadml_dist.shards.image_codec import IMAGE_EXTENSIONS, decode_image_file
from hsadml_dist.shards.source import SourceListing, SourcePixels, SourceRecord, scan_folder, size_and_mtime

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
"""Folder name in lower case -> class."""
PARTS = {"testing": "Testing", "training": "Training"}
AUTHOR_FOLDS = {"Testing": 0, "Training": 1}
IGNORED_NAMES = ("thumbs.db", "desktop.ini", "__macosx")
"""Files and folders that desktops leave behind; hidden files are ignored too."""


@dataclass(frozen=True, kw_only=True)
class ClassFolder:
    """Images of one class, sorted by name, in ``Training``, ``Testing`` or neither; ``others`` counts other entries."""

    part: str
    class_name: str
    images: tuple[Path, ...]
    others: int

    @property
    def where(self) -> str:
        """Name of the folder in messages."""
        return f"{self.part}, {self.class_name}" if self.part else self.class_name


@dataclass(frozen=True, kw_only=True)
class FoldersSource:
    """One folder per class.

    Attributes:
        folder: Holds ``Training`` and ``Testing``, or the class folders, directly or within one enclosing folder.
        author_folds: Prescribe the publisher's parts as folds: 0 ``Testing``, 1 ``Training``.
    """

    name: ClassVar[str] = "folders"
    folder: Path
    author_folds: bool = False

    def list_records(self) -> SourceListing:
        """List the images; other files, and class folders without an image, are skipped.

        Raises:
            UsageError: The publisher's parts are requested as folds and do not exist.
            DataError: The folder does not exist, holds a folder of an unknown class, or holds no image.
        """
        folders = self._class_folders()
        if self.author_folds and {folder.part for folder in folders} != set(AUTHOR_FOLDS):
            raise UsageError("--author-folds: INPUT lacks a Training or a Testing folder; omit the option")
        records = tuple(record for folder in folders for record in self._folder_records(folder))
        if not records:
            raise DataError(f"INPUT: the class folders hold no image; allowed: {', '.join(IMAGE_EXTENSIONS)}")
        reason = f"not an image by its extension; allowed: {', '.join(IMAGE_EXTENSIONS)}"
        skipped = [
            SkippedSample(where=f"{folder.where}: other entry {number} of {folder.others}", reason=reason)
            for folder in folders
            for number in range(1, folder.others + 1)
        ]
        skipped += [
            SkippedSample(where=f"class folder {folder.where}", reason="holds no image")
            for folder in folders
            if not folder.images
        ]
        return SourceListing(records=records, skipped=(*skipped, *_skipped_outside(self.folder)))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Decode one image."""
        (path,) = record.handle
        return SourcePixels(image=decode_image_file(self.folder / path, record.where, "image"))

    def fingerprint(self) -> str:
        """Hash the order, sizes and modification times of the images."""
        digest = hashlib.sha256(f"{self.name} {self.author_folds}\n".encode())
        for folder in self._class_folders():
            digest.update(f"{folder.where} {folder.others}\n".encode())
            for path in folder.images:
                digest.update(os.fsencode(path.name) + f" {size_and_mtime(path)}\n".encode())
        return digest.hexdigest()

    def _class_folders(self) -> list[ClassFolder]:
        if not self.folder.is_dir():
            raise DataError(f"INPUT {self.folder}: no such folder; SOURCE folders needs the folder of class folders")
        return list(_find_class_folders(_unwrap(self.folder)))

    def _folder_records(self, folder: ClassFolder) -> Iterator[SourceRecord]:
        author_fold = AUTHOR_FOLDS.get(folder.part)
        for number, path in enumerate(folder.images, start=1):
            yield SourceRecord(
                record_id=f"{folder.part}/{folder.class_name}/{number}",
                where=f"{folder.where}: image {number} by name",
                class_name=folder.class_name,
                fold=author_fold if self.author_folds else None,
                author_fold=author_fold,
                handle=(str(path.relative_to(self.folder)),),
            )


def _skipped_outside(folder: Path) -> Iterator[SkippedSample]:
    """Yield the images outside the class folders, which have no class."""
    top = _unwrap(folder)
    levels = {folder, top, *(path for name, path in _subfolders(top).items() if name in PARTS)}
    count = sum(_is_image(entry) for level in levels for entry in _visible_entries(level))
    for number in range(1, count + 1):
        yield SkippedSample(where=f"image {number} of {count} outside the class folders", reason="has no class")


def _is_image(entry: os.DirEntry[str]) -> bool:
    return not entry.is_dir() and entry.name.lower().endswith(IMAGE_EXTENSIONS)


def _unwrap(folder: Path) -> Path:
    """Return the single folder inside ``folder`` if it encloses everything, as in many archives."""
    subfolders = _subfolders(folder)
    known = any(name in PARTS or name in CLASSES for name in subfolders)
    return next(iter(subfolders.values())) if len(subfolders) == 1 and not known else folder


def _find_class_folders(folder: Path) -> Iterator[ClassFolder]:
    """Yield the class folders, Testing before Training, classes in alphabetical order."""
    subfolders = _subfolders(folder)
    parts = {name: path for name, path in subfolders.items() if name in PARTS}
    _check_folder_names(subfolders, PARTS if parts else CLASSES)
    if not subfolders:
        raise DataError(f"INPUT: the folder holds no class folders; {_allowed_names()}")
    if not parts:
        yield from _read_class_folders("", subfolders)
    for name, path in sorted(parts.items()):
        classes = _subfolders(path)
        _check_folder_names(classes, CLASSES)
        yield from _read_class_folders(PARTS[name], classes)


def _read_class_folders(part: str, folders: Mapping[str, Path]) -> list[ClassFolder]:
    names = [CLASSES[name] for name in folders]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"INPUT: {part + ' has ' if part else ''}two folders of class {name}; merge them")
    found = []
    for class_name, path in sorted((CLASSES[name], path) for name, path in folders.items()):
        entries = _visible_entries(path)
        images = tuple(Path(entry.path) for entry in entries if _is_image(entry))
        others = len(entries) - len(images)
        found.append(ClassFolder(part=part, class_name=class_name, images=images, others=others))
    return found


def _subfolders(folder: Path) -> dict[str, Path]:
    """Return lower-case name -> path of the folders in ``folder``; raise if two names differ by case alone."""
    found: dict[str, Path] = {}
    for entry in _visible_entries(folder):
        if entry.is_dir():
            if entry.name.lower() in found:
                raise DataError("INPUT: two folders whose names differ only in upper and lower case; merge them")
            found[entry.name.lower()] = Path(entry.path)
    return found


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder by the bytes of its names, without hidden and ignored entries."""
    entries = [entry for entry in scan_folder(folder) if entry.name.lower() not in IGNORED_NAMES]
    return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def _check_folder_names(folders: Mapping[str, Path], known: Mapping[str, str]) -> None:
    """Raise for folders of unknown names, giving only their number."""
    count = sum(name not in known for name in folders)
    if count:
        raise DataError(
            f"INPUT: {count} of {len(folders)} folders have an unknown name; {_allowed_names()}; "
            "for other classes list the images in a CSV and use SOURCE table"
        )


def _allowed_names() -> str:
    return f"allowed: {', '.join(CLASSES)}, or Training and Testing with these inside"
