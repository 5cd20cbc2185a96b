"""Jun Cheng's brain tumor dataset as its author distributes it: MATLAB files, loose or in the four original zips.

3064 contrast-enhanced T1-weighted slices of meningioma, glioma and pituitary tumour, each with its tumour's mask. A PID
names an exam, not a person: repeat exams of one person have several, and the author's own folds (``cvind.mat``) are
disjoint by exam only. ``--persons`` gives the persons, where they are known.

Source: J. Cheng, brain tumor dataset, figshare 1512427, version 5 (2017), CC BY 4.0; J. Cheng et al., PLoS ONE 10(10),
e0140381 (2015).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

from hsadml_dist.data.index import SkippedSample
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.record import DamagedSampleError, SourceListing, SourcePixels, SourceRecord
from hsadml_dist.shards.sources.figshare.files import (
    MOST_BYTES,
    DatasetFiles,
    FileLocation,
    find_files,
    read_folds,
    read_member,
)
from hsadml_dist.shards.sources.figshare.matlab import FILES, SliceHeader, read_author_folds, read_header, read_pixels
from hsadml_dist.shards.sources.figshare.persons import PatientTable, parse_persons, read_persons, refuse_torn_exams

CLASSES = {1: "meningioma", 2: "glioma", 3: "pituitary"}
FULL_SHAPE = (512, 512)
SPACING_MM = (0.49, 0.49)
"""Of the slices of full shape; the few of 256 x 256 do not say theirs."""


@dataclass(frozen=True, kw_only=True)
class FigshareSource:
    """The data set in a folder.

    Attributes:
        folder: Holds ``N.mat`` files or the original zips, up to two folders deep, and perhaps ``cvind.mat``.
        persons: A CSV that gives slices or exams their persons; without it no person is known.
        author_folds: Prescribe the author's folds (1 to 5, here 0 to 4) instead of drawing our own.
    """

    name: ClassVar[str] = "figshare"
    folder: Path
    persons: Path | None = None
    author_folds: bool = False

    def list_records(self) -> SourceListing:
        """List the slices by number; files that cannot be used are skipped.

        Raises:
            UsageError: The author's folds are wanted and ``cvind.mat`` is not there.
            DataError: The folder, a zip, ``cvind.mat`` or the table of persons is wrong, or no slice can be used.
        """
        persons = None if self.persons is None else parse_persons(read_persons(self.persons))
        found = find_files(self.folder)
        folds = self._folds(found)
        records: list[SourceRecord] = []
        skipped: list[SkippedSample] = []
        for number, place in sorted(found.slices.items()):
            try:
                header = read_header(_content(place.path, place.member, f"{number}.mat", place.size), f"{number}.mat")
            except DamagedSampleError as damage:
                skipped.append(damage.skip)
            else:
                records.append(self._record(number, header, place, persons, folds))
        if not records:
            raise DataError(
                f"INPUT: none of {len(skipped)} slices can be used; {skipped[0].where}: {skipped[0].reason}"
            )
        if persons is not None:
            refuse_torn_exams(records)
        return SourceListing(records=tuple(records), skipped=(*skipped, *_others(found.others)))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Read image and mask, int16 and uint8 in the original files.

        Raises:
            DamagedError: They cannot be read.
        """
        path, member = record.handle
        return read_pixels(_content(self.folder / path, member, record.where), record.where)

    def fingerprint(self) -> str:
        """Hash the settings, the small files, and each slice's size and time of change or CRC."""
        found = find_files(self.folder)
        parts: list[object] = [self.name, self.author_folds, found.others, read_folds(found.folds)]
        parts.append(None if self.persons is None else read_persons(self.persons))
        parts.extend((number, place.size, place.state) for number, place in sorted(found.slices.items()))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _folds(self, found: DatasetFiles) -> tuple[int, ...] | None:
        content = read_folds(found.folds)
        if content is None and self.author_folds:
            raise UsageError("--author-folds: there is no cvind.mat in INPUT: put it beside the slices")
        return None if content is None else read_author_folds(content)

    def _record(
        self,
        number: int,
        header: SliceHeader,
        place: FileLocation,
        persons: PatientTable | None,
        folds: tuple[int, ...] | None,
    ) -> SourceRecord:
        author_fold = None if folds is None else folds[number - 1]
        return SourceRecord(
            record_id=f"slice {number}",
            where=f"{number}.mat",
            class_name=CLASSES[header.label],
            person=None if persons is None else persons.of(number, header.pid),
            exam=header.pid,
            fold=author_fold - 1 if self.author_folds and author_fold is not None else None,
            author_fold=author_fold,
            spacing_mm=SPACING_MM if header.shape == FULL_SHAPE else None,
            handle=(str(place.path.relative_to(self.folder)), place.member),
        )


def _content(path: Path, member: str, where: str, size: int = 0) -> Path | BinaryIO:
    """Return what HDF5 can open: the file, or the unpacked member of a zip."""
    if not member:
        return path
    if size > MOST_BYTES:
        raise DamagedSampleError(where, f"claims {size} bytes in its zip: no slice is as large")
    return io.BytesIO(read_member(path, member, where))


def _others(count: int) -> Iterable[SkippedSample]:
    """Count the files that are no slice by their order, since a name may be an identifier."""
    for number in range(1, count + 1):
        yield SkippedSample(where=f"other .mat file {number} of {count}", reason=f"not named 1.mat ... {FILES}.mat")
