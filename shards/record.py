"""What every source of images yields: records, listed at once, and their pixels, read one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One sample of a source before its pixels are read; identifiers stand in clear here and nowhere later.

    Attributes:
        identity: What names the record within its source and stays the same between builds; never a path.
        where: How an error names the record to a user, for instance ``row 17``.
        class_name: The class in words.
        person: The source's person identifier, or None.
        exam: The source's exam identifier, or None.
        fold: The fold that the source prescribes, or None.
        plane: One of :data:`PLANES`, or None.
        spacing_mm: Size of a pixel along (height, width), or None.
        handle: What the source needs to find the pixels again; of no meaning to anyone else.
    """

    identity: str
    where: str
    class_name: str
    person: str | None = None
    exam: str | None = None
    fold: int | None = None
    plane: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    handle: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """One record's pixels.

    Attributes:
        image: (height, width), any real dtype; 8-bit unsigned counts as full range, all else as its own range.
        mask: (height, width), non-zero inside the lesion, or None.
    """

    image: np.ndarray
    mask: np.ndarray | None = None


class Source(Protocol):
    """A source: picklable, since worker processes read from their own copy."""

    def records(self) -> tuple[Record, ...]:
        """List all records without reading pixels.

        Raises:
            DataError: The listing is wrong; one clear line.
        """
        ...

    def read(self, record: Record) -> Pixels:
        """Read one record's pixels.

        Raises:
            DataError: They cannot be read; the line names ``record.where``.
        """
        ...

    def fingerprint(self) -> str:
        """Return a text that changes whenever the records or their pixels may have changed."""
        ...
