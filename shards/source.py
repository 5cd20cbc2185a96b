"""Interface of the sources of images: records, listed all at once, and their pixels, read one record at a time.

Some files of a real lab are damaged. A sample that cannot be used is skipped, named and counted; a listing that is
wrong as a whole ends the build. Errors of :func:`scan_folder` quote no name in the folder: it may be an identifier.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hsadml_dist.data.index import SkippedSample
from hsadml_dist.errors import DataError

if TYPE_CHECKING:
    import numpy as np

PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord:
    """One sample of a source before its pixels are read. Identifiers are in clear here and nowhere later.

    Attributes:
        record_id: Name of the record within its source, the same in every build; never a path.
        where: Name of the record in messages, for instance ``row 17``.
        fold: The fold that the source prescribes, or None.
        author_fold: The fold of the data set's publisher, kept in addition to ours, or None.
        plane: One of :data:`PLANES`, or None.
        spacing_mm: Size of a pixel along (height, width), or None.
        handle: Private to the source: what it needs to find the pixels again.
    """

    record_id: str
    where: str
    class_name: str
    person: str | None = None
    exam: str | None = None
    fold: int | None = None
    author_fold: int | None = None
    plane: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    handle: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourcePixels:
    """Image and mask of one record.

    Attributes:
        image: (height, width), any real dtype.
        mask: (height, width), non-zero inside the lesion; None if there is none.
        mask_is_lossy: True if the mask was stored as JPEG and had to be separated from its compression noise.
    """

    image: np.ndarray
    mask: np.ndarray | None = None
    mask_is_lossy: bool = False


@dataclass(frozen=True, kw_only=True)
class SourceListing:
    """Content of a source: the records to build, and the samples already known to be unusable."""

    records: tuple[SourceRecord, ...]
    skipped: tuple[SkippedSample, ...] = ()


class DamagedSampleError(DataError):
    """One sample cannot be used: the build skips and counts it; ``where`` and reason hold no identifier or path."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.skip = SkippedSample(where=where, reason=reason)

    def __reduce__(self) -> tuple[type[DamagedSampleError], tuple[str, str]]:
        return type(self), (self.skip.where, self.skip.reason)


def scan_folder(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder below INPUT without hidden entries; raise DataError if it cannot be read."""
    try:
        return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"INPUT: a folder in it cannot be read: {error.strerror}") from error


def size_and_mtime(path: Path) -> tuple[int, int]:
    """Return size in bytes and modification time in nanoseconds; zeros for a broken link."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


class ImageSource(Protocol):
    """A source of images; picklable, because worker processes read from their own copy."""

    @property
    def name(self) -> str:
        """Name of the source on the command line."""
        ...

    def list_records(self) -> SourceListing:
        """List all records without reading pixels.

        Raises:
            DataError: The listing is wrong as a whole; one line.
        """
        ...

    def read(self, record: SourceRecord) -> SourcePixels:
        """Read the pixels of one record.

        Raises:
            DamagedSampleError: They cannot be used.
        """
        ...

    def fingerprint(self) -> str:
        """Return a text that changes whenever the records or their pixels may have changed."""
        ...


def require_regular_file(path: Path) -> None:
    """Raise OSError unless ``path`` is a file; a pipe would wait for its other end, and is read once only."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
