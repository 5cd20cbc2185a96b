"""The index of a folder of shards, and the labels that the network learns from it.

On disk the index is ``index.json``, a header of a few lines, and ``samples.jsonl``, one row per sample in the order of
the shards. The SHA-256 of ``samples.jsonl`` is the ``digest`` of the folder: each row holds the hash of its image, so
two folders with the same digest hold the same images with the same labels, folds and positions.
Imports neither torch nor NumPy, so that a login node can read an index.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hsadml_dist.atomic import write_bytes
from hsadml_dist.config.recipe import DataConfig
from hsadml_dist.data.sample import (
    MAX_SIDE,
    MEMBERS,
    REQUIRED_MEMBERS,
    SCHEMA_VERSION,
    is_count,
    is_count_or_none,
    is_key,
    is_text_or_none,
)
from hsadml_dist.errors import DataError
from hsadml_dist.json_parsing import INVALID, parse_json

INDEX_NAME = "index.json"
SAMPLES_NAME = "samples.jsonl"
SPLIT_UNITS = ("person", "exam", "slice")
"""The unit that is never divided between folds: a patient, an exam, or (a leaky control) a single slice."""
PERSON = "person"
"""The value of ``data.label`` that makes each patient a class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """One file: its name in the folder, its size in bytes and the SHA-256 of its content, in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedSample:
    """A sample of the source that is in no shard: where it was (a row, never a path) and why it was skipped."""

    where: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRow:
    """The index row of one sample.

    Attributes:
        key: The sample key.
        shard: Index of its tar in ``ShardIndex.shards``.
        members: Member (``png``, ``json``, ``mask.png``) to the (offset, size) of its bytes in the tar.
        sha256: SHA-256 of the image member, in hex.
        label: Index of the class.
        person: Keyed hash of the patient, or None.
        exam: Keyed hash of the exam, or None.
        fold: The fold whose test set contains the sample.
        author_fold: The fold assigned by the publisher of the data set, or None.
        plane: ``axial``, ``coronal`` or ``sagittal``, or None if unknown.
    """

    key: str
    shard: int
    members: dict[str, tuple[int, int]]
    sha256: str
    label: int
    person: str | None
    exam: str | None
    fold: int
    author_fold: int | None = None
    plane: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Everything about a folder of shards except the images.

    Attributes:
        schema: Version of the format.
        source: Name of the source of the samples, for instance ``table``.
        classes: Class names in the order of their labels.
        split_unit: One of :data:`SPLIT_UNITS`.
        folds: Number of folds.
        seed: Seed of the folds and of the order of the samples.
        size: Side length of the square images, in pixels.
        spatial_dims: 2 for slices, 3 for volumes.
        dtype: Type of the decoded pixels.
        digest: SHA-256 of the samples table, in hex; it identifies the whole folder.
        shards: The tar files.
        files: Other files of the folder: the data card and the splits.
        skipped: Samples of the source that could not be used.
        samples: One row per sample; the position of a sample is its index here.
    """

    schema: int = SCHEMA_VERSION
    source: str
    classes: tuple[str, ...]
    split_unit: str
    folds: int
    seed: int
    size: int
    spatial_dims: int = 2
    dtype: str = "uint16"
    digest: str
    shards: tuple[ShardFile, ...]
    files: tuple[ShardFile, ...] = ()
    skipped: tuple[SkippedSample, ...] = ()
    samples: tuple[SampleRow, ...]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def fold_numbers(self) -> tuple[int, ...]:
        """The folds that occur, ascending: 0 to folds - 1 unless the source has its own fold column."""
        return tuple(sorted({row.fold for row in self.samples}))

    def in_folds(self, folds: Iterable[int]) -> tuple[int, ...]:
        """Return the positions, ascending, of all samples in any of ``folds``.

        Raises:
            DataError: A fold contains no sample.
        """
        wanted = self._checked(folds)
        return tuple(position for position, row in enumerate(self.samples) if row.fold in wanted)

    def outside_folds(self, folds: Iterable[int]) -> tuple[int, ...]:
        """Return the positions, ascending, of all samples in none of ``folds``, which are checked as well."""
        unwanted = self._checked(folds)
        return tuple(position for position, row in enumerate(self.samples) if row.fold not in unwanted)

    def _checked(self, folds: Iterable[int]) -> frozenset[int]:
        wanted = frozenset(folds)
        unknown = sorted(wanted.difference(self.fold_numbers))
        if unknown:
            allowed = ", ".join(map(str, self.fold_numbers))
            raise DataError(f"fold {unknown[0]}: these shards have no such fold; allowed: {allowed}")
        return wanted


def samples_table(samples: Iterable[SampleRow]) -> bytes:
    """Return the content of ``samples.jsonl``: one row per line, sorted keys, UTF-8."""
    rows = ({name: getattr(row, name) for name in SampleRow.__slots__} for row in samples)
    return b"".join((json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n").encode() for row in rows)


def parse_row(line: bytes) -> SampleRow:
    """Parse one line of a samples table.

    Raises:
        KeyError, TypeError, ValueError: The line is not a row of this schema.
    """
    values = parse_json(line)
    values["members"] = {name: (offset, size) for name, (offset, size) in values["members"].items()}
    return SampleRow(**values)


def table_digest(table: bytes) -> str:
    """Return the SHA-256, in hex, of a samples table."""
    return hashlib.sha256(table).hexdigest()


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write ``index`` into ``folder`` atomically: the table first, the header last.

    Raises:
        DataError: ``index.digest`` does not match the samples.
    """
    table = samples_table(index.samples)
    if index.digest != table_digest(table):
        raise DataError("index: the digest does not match the samples; use table_digest(samples_table(samples))")
    write_bytes(folder / SAMPLES_NAME, table)
    header = asdict(replace(index, samples=()))
    del header["samples"]
    header["count"] = len(index)
    write_bytes(folder / INDEX_NAME, (json.dumps(header, indent=2, sort_keys=True) + "\n").encode())


def load_index(folder: Path, display_name: str | None = None) -> ShardIndex:
    """Read the index of a folder of shards, without opening the tars.

    Args:
        folder: The folder.
        display_name: Name of the folder in messages, if the index was copied from elsewhere.

    Raises:
        DataError: There is no index, or it has another schema version, or it is damaged or cut short.
    """
    named = display_name or str(folder)
    header = _read_header(folder, named)
    table = _read(folder / SAMPLES_NAME, named)
    if table_digest(table) != header["digest"]:
        problem = f"is damaged or cut short: its SHA-256 differs from the one in {INDEX_NAME}"
        raise DataError(f"{named}: {SAMPLES_NAME} {problem}")
    try:
        index = _index(header, table)
    except INVALID as error:
        raise DataError(f"{named}: the index does not follow schema {SCHEMA_VERSION}: {error!r}") from error
    _check(named, index)
    return index


def _read(path: Path, named: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{named}: {path.name} is missing: not a folder of shards, or an unfinished build") from error
    except OSError as error:
        raise DataError(f"{named}: {path.name} cannot be read: {error.strerror}") from error


def _read_header(folder: Path, named: str) -> dict[str, Any]:
    try:
        header = parse_json(_read(folder / INDEX_NAME, named))
    except ValueError as error:
        raise DataError(f"{named}: {INDEX_NAME} is damaged or cut short: {error}") from error
    if not isinstance(header, dict) or "schema" not in header or "digest" not in header:
        raise DataError(f"{named}: {INDEX_NAME} is not a shard index: 'schema' or 'digest' is missing")
    if header["schema"] != SCHEMA_VERSION:
        problem = f"is not supported; allowed: {SCHEMA_VERSION}; build the shards again"
        raise DataError(f"{named}: schema {header['schema']!r} {problem}")
    return header


def _index(header: dict[str, Any], table: bytes) -> ShardIndex:
    values = {name: value for name, value in header.items() if name != "count"}
    values["classes"] = tuple(header["classes"])
    for name, kind in (("shards", ShardFile), ("files", ShardFile), ("skipped", SkippedSample)):
        values[name] = tuple(kind(**item) for item in header[name])
    index = ShardIndex(**values, samples=tuple(map(parse_row, table.splitlines())))
    if len(index.samples) != header["count"]:
        raise ValueError(f"count {header['count']}, rows {len(index.samples)}")
    return index


def _check(named: str, index: ShardIndex) -> None:
    """Refuse values that the hash of the table does not rule out but that no reader could use."""
    invalid = [name for name, is_valid in _valid_header(index).items() if not is_valid]
    if invalid:
        raise DataError(f"{named}: {INDEX_NAME}: invalid values: {', '.join(invalid)}")
    for file in (*index.shards, *index.files):
        name = file.name
        is_plain = isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
        if not (is_plain and is_count(file.bytes) and re.fullmatch("[0-9a-f]*", str(file.sha256))):
            raise DataError(f"{named}: {INDEX_NAME}: invalid values for the file {file.name!r}")
    for position, row in enumerate(index.samples):
        invalid = _invalid_fields(row, len(index.classes), index.shards)
        if invalid:
            raise DataError(f"{named}: {SAMPLES_NAME}: row {position}: invalid values: {', '.join(invalid)}")


def _valid_header(index: ShardIndex) -> dict[str, bool]:
    return {
        "classes": all(isinstance(name, str) for name in index.classes),
        "dtype": isinstance(index.dtype, str),
        "folds": is_count(index.folds),
        "seed": isinstance(index.seed, int),
        "size": is_count(index.size) and 1 <= index.size <= MAX_SIDE,
        "skipped": all(isinstance(text, str) for skip in index.skipped for text in (skip.where, skip.reason)),
        "source": isinstance(index.source, str),
        "spatial_dims": index.spatial_dims in (2, 3),
        "split_unit": index.split_unit in SPLIT_UNITS,
    }


def _invalid_fields(row: SampleRow, classes: int, shards: tuple[ShardFile, ...]) -> list[str]:
    has_shard = is_count(row.shard) and row.shard < len(shards)
    end = shards[row.shard].bytes if has_shard else 0
    valid = {
        "key": is_key(row.key),
        "label": is_count(row.label) and row.label < classes,
        "shard": has_shard,
        "fold": is_count(row.fold),
        "author_fold": is_count_or_none(row.author_fold),
        "plane": is_text_or_none(row.plane),
        "person": is_text_or_none(row.person),
        "exam": is_text_or_none(row.exam),
        "members": set(REQUIRED_MEMBERS) <= row.members.keys() <= set(MEMBERS)
        and all(is_count(offset) and is_count(size) and offset + size <= end for offset, size in row.members.values()),
    }
    return [name for name, is_valid in valid.items() if not is_valid]


def apply_label_setting(index: ShardIndex, data: DataConfig) -> ShardIndex:
    """Return the index with the labels that ``data.label`` chooses.

    Everything that reads labels or class names uses this, so that training, evaluation, predictions and exported files
    agree on them. With ``person``, ``classes`` are the sorted keyed hashes of the patients and ``label`` is the index
    of a row's patient among them. The rest, including the digest, is unchanged: the samples are the same.

    Raises:
        DataError: These labels cannot be learned from these shards.
    """
    if data.label != PERSON:
        return index
    problem = label_problem(index, data)
    if problem is not None:
        raise DataError(f"data.label: {problem}")
    persons = sorted({row.person for row in index.samples if row.person is not None})
    label = {person: number for number, person in enumerate(persons)}
    samples = tuple(replace(row, label=label[row.person]) for row in index.samples if row.person is not None)
    return replace(index, classes=tuple(persons), samples=samples)


def label_problem(index: ShardIndex, data: DataConfig) -> str | None:
    """Return in one line why ``data.label`` cannot be learned from these shards, or None if it can."""
    if data.label != PERSON:
        return None
    unnamed = sum(row.person is None for row in index.samples)
    if unnamed:
        return (
            f"'person' needs the patient of every slice, which {unnamed} of {len(index)} slices lack; "
            "use shards whose source names the patients, or 'class'"
        )
    if index.split_unit == PERSON:
        return (
            "'person' cannot be evaluated on folds split by person: no patient of the test fold is in training; "
            "build the shards with --split-by slice or exam"
        )
    known = {row.person for row in index.samples if row.fold not in (data.fold, data.val_fold)}
    tested = {row.person for row in index.samples if row.fold == data.fold}
    if tested and not tested & known:
        return (
            f"'person' cannot be evaluated on fold {data.fold}: none of its patients is in the training folds; "
            "build the shards with --split-by slice"
        )
    return None
