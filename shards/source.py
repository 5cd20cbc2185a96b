"""What every source of images yields: records, listed at once, and their pixels, read one at a time.

Data of real labs are damaged here and there. A sample that cannot be used is skipped, named and counted; a listing that
is wrong as a whole ends the build.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hsadml_dist.data.index import SkippedSample
from hsadml_dist.errors import DataError

if TYPE_CHECKING:
    import numpy as np

PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord:
    """One sample of a source before its pixels are read; identifiers stand in clear here and nowhere later.

    Attributes:
        record_id: What names the record within its source and stays the same between builds; never a path.
        where: How an error names the record to a user, for instance ``row 17``.
        class_name: The class in words.
        person: The source's person identifier, or None.
        exam: The source's exam identifier, or None.
        fold: The fold that the source prescribes, or None.
        author_fold: The fold of the data set's publisher, kept beside our own, or None.
        plane: One of :data:`PLANES`, or None.
        spacing_mm: Size of a pixel along (height, width), or None.
        handle: What the source needs to find the pixels again; of no meaning to anyone else.
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
    """One record's pixels.

    Attributes:
        image: (height, width), any real dtype; 8-bit unsigned counts as full range, all else as its own range.
        mask: (height, width), non-zero inside the lesion, or None.
    """

    image: np.ndarray
    mask: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class SourceListing:
    """What a source holds: the samples to build, and those already known to be unusable."""

    records: tuple[SourceRecord, ...]
    skipped: tuple[SkippedSample, ...] = ()


class DamagedSampleError(DataError):
    """One sample cannot be used: the build skips it, names it by ``where`` and counts it.

    Attributes:
        skip: Where and why; no identifier, no path.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.skip = SkippedSample(where=where, reason=reason)

    def __reduce__(self) -> tuple[type[DamagedSampleError], tuple[str, str]]:
        return type(self), (self.skip.where, self.skip.reason)


class ImageSource(Protocol):
    """A source: picklable, since worker processes read from their own copy."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    def list_records(self) -> SourceListing:
        """List all records without reading pixels.

        Raises:
            DataError: The listing is wrong as a whole; one clear line.
        """
        ...

    def read(self, record: SourceRecord) -> SourcePixels:
        """Read one record's pixels.

        Raises:
            DamagedError: They cannot be used.
        """
        ...

    def fingerprint(self) -> str:
        """Return a text that changes whenever the records or their pixels may have changed."""
        ...
