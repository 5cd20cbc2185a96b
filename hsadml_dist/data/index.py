"""The index of a folder of shards, and the labels that the network learns from it.

On disk the index is ``index.json``, a header of a few lines, and ``samples.jsonl``, one row per sample in the order of
the shards. The SHA-256 of ``samples.jsonl`` is the ``digest`` of the folder: each row holds the hash of its image, so
two folders with the same digest hold the same images with the same labels, folds and positions.
Imports only the standard library, so that a login node can read an index.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hsadml_dist.config.recipe import DataConfig
from hsadml_dist.data.sample import (
    MEMBERS,
    REQUIRED_MEMBERS,
    SCHEMA_VERSION,
    is_count,
    is_count_or_none,
    is_key,
    is_text_or_none,
)
from hsadml_dist.errors import DataError

INDEX_NAME = "index.json"
SAMPLES_NAME = "samples.jsonl"
SPLIT_UNITS = ("person", "exam", "slice")
"""What no two folds share: a person, an exam, or (a leaky control) only the single slice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """One file: its name in the folder, its size in bytes and the SHA-256 of all of it, in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedSample:
    """A sample of the source that is in no shard: where it stood (a row, never a path) and why it was left out."""

    where: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRow:
    """One sample's row.

    Attributes:
        key: The sample's key.
        shard: Place of its tar in ``ShardIndex.shards``.
        members: Member (``png``, ``json``, ``mask.png``) to (offset, size) of its raw bytes in the tar.
        sha256: Hash of the image member's bytes, in hex.
        label: The class's number.
        person: Keyed hash of the person, or None.
        exam: Keyed hash of the exam, or None.
        fold: The fold that holds the sample out.
        author_fold: The fold that the data set's publisher put it in, or None.
        plane: ``axial``, ``coronal`` or ``sagittal``, or None where unknown.
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
    """All that is known of a folder of shards without opening one.

    Attributes:
        schema: Version of the format.
        source: What the samples came from, for instance ``table``.
        classes: Class names in the order of their labels.
        split_unit: One of :data:`SPLIT_UNITS`.
        folds: How many folds there are.
        seed: What the folds and the order of samples were drawn from.
        size: Side of each square image in pixels.
        spatial_dims: 2 now, 3 for volumes.
        dtype: Type of the pixels after decoding.
        digest: SHA-256 of the samples table, in hex: the identity of the whole folder.
        shards: The tars.
        files: What lies beside the tars for people and other tools: the card and the splits.
        skipped: Samples of the source that could not be used.
        samples: One row a sample; a sample's position is its place here.
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
        """The folds that occur, ascending: 0 ... folds - 1 unless the source's own fold column counts otherwise."""
        return tuple(sorted({row.fold for row in self.samples}))

    def in_folds(self, folds: Iterable[int]) -> tuple[int, ...]:
        """Return the positions, ascending, of all samples in any of ``folds``.

        Raises:
            DataError: A fold that no sample is in.
        """
        wanted = self._checked(folds)
        return tuple(position for position, row in enumerate(self.samples) if row.fold in wanted)

    def outside_folds(self, folds: Iterable[int]) -> tuple[int, ...]:
        """Return the positions, ascending, of all samples in none of ``folds``.

        Raises:
            DataError: A fold that no sample is in.
        """
        unwanted = self._checked(folds)
        return tuple(position for position, row in enumerate(self.samples) if row.fold not in unwanted)

    def _checked(self, folds: Iterable[int]) -> frozenset[int]:
        wanted = frozenset(folds)
        known = self.fold_numbers
        odd = sorted(wanted.difference(known))
        if odd:
            allowed = ", ".join(map(str, known))
            raise DataError(f"fold {odd[0]}: these shards have no such fold; allowed: {allowed}")
        return wanted


def samples_table(samples: Iterable[SampleRow]) -> bytes:
    """Return the text of ``samples.jsonl``: one row a line, sorted keys, UTF-8."""
    return b"".join(_row_line(row) for row in samples)


def parse_row(line: bytes) -> SampleRow:
    """Read one line of a samples table.

    Raises:
        KeyError, TypeError, ValueError: Not a row of this schema.
    """
    values = json.loads(line)
    values["members"] = {name: (offset, size) for name, (offset, size) in values["members"].items()}
    return SampleRow(**values)


def table_digest(table: bytes) -> str:
    """Return the SHA-256, in hex, of a samples table."""
    return hashlib.sha256(table).hexdigest()


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write ``index`` into ``folder``: the table first, the header last, each by rename, so that no half is seen.

    Raises:
        DataError: ``index.digest`` is not the digest of its samples.
    """
    table = samples_table(index.samples)
    if index.digest != table_digest(table):
        raise DataError("the index's digest is not that of its samples: build it with table_digest(samples_table(...))")
    _replace(folder / SAMPLES_NAME, table)
    _replace(folder / INDEX_NAME, (json.dumps(_header(index), indent=2, sort_keys=True) + "\n").encode())


def load_index(folder: Path, called: str | None = None) -> ShardIndex:
    """Read the index of a folder of shards; the tars stay unread.

    Args:
        folder: Where it lies.
        called: What messages call it, where the folder is only a place that it was copied to.

    Raises:
        DataError: No index, another schema version, or an index that is damaged or cut short; one line each.
    """
    named = called or str(folder)
    header = _read_header(folder, named)
    table = _read(folder / SAMPLES_NAME, named)
    if table_digest(table) != header["digest"]:
        raise DataError(f"{named}: {SAMPLES_NAME} is damaged or cut short: its SHA-256 is not the one in {INDEX_NAME}")
    try:
        index = _index(header, table)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{named}: the index does not follow schema {SCHEMA_VERSION}: {error!r}") from error
    _check(named, index)
    return index


def _row_line(row: SampleRow) -> bytes:
    values = {name: getattr(row, name) for name in SampleRow.__slots__}
    return (json.dumps(values, sort_keys=True, separators=(",", ":")) + "\n").encode()


def _header(index: ShardIndex) -> dict[str, Any]:
    names = ("schema", "source", "classes", "split_unit", "folds", "seed", "size", "spatial_dims", "dtype", "digest")
    lists = {name: [asdict(item) for item in getattr(index, name)] for name in ("shards", "files", "skipped")}
    return {**{name: getattr(index, name) for name in names}, "count": len(index.samples), **lists}


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read(path: Path, named: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{named}: no {path.name} here: not a folder of shards, or its build did not end") from error
    except OSError as error:
        raise DataError(f"{named}: {path.name} cannot be read: {error.strerror}") from error


def _read_header(folder: Path, named: str) -> dict[str, Any]:
    try:
        header = json.loads(_read(folder / INDEX_NAME, named))
    except ValueError as error:
        raise DataError(f"{named}: {INDEX_NAME} is damaged or cut short: {error}") from error
    if not isinstance(header, dict) or "schema" not in header or "digest" not in header:
        raise DataError(f"{named}: {INDEX_NAME} is no index of shards: it lacks 'schema' or 'digest'")
    if header["schema"] != SCHEMA_VERSION:
        raise DataError(f"{named}: schema {header['schema']!r}: this version reads {SCHEMA_VERSION}; build them again")
    return header


def _index(header: dict[str, Any], table: bytes) -> ShardIndex:
    values = {name: value for name, value in header.items() if name != "count"}
    values["classes"] = tuple(header["classes"])
    for name, kind in (("shards", ShardFile), ("files", ShardFile), ("skipped", SkippedSample)):
        values[name] = tuple(kind(**item) for item in header[name])
    index = ShardIndex(**values, samples=tuple(parse_row(line) for line in table.splitlines()))
    if len(index.samples) != header["count"]:
        raise ValueError(f"count {header['count']}, rows {len(index.samples)}")
    return index


def _check(named: str, index: ShardIndex) -> None:
    """Refuse what the table's hash vouches for or leaves out, but that no reader could use."""
    for file in index.shards:
        if not (_is_plain(file.name) and is_count(file.bytes) and re.fullmatch("[0-9a-f]*", str(file.sha256))):
            raise DataError(f"{named}: {INDEX_NAME} has wrong values for the shard {file.name!r}")
    for position, row in enumerate(index.samples):
        wrong = _wrong_fields(row, len(index.classes), len(index.shards))
        if wrong:
            raise DataError(f"{named}: row {position} of {SAMPLES_NAME} has wrong values for: {', '.join(wrong)}")


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _wrong_fields(row: SampleRow, classes: int, shards: int) -> list[str]:
    good = {
        "key": is_key(row.key),
        "label": is_count(row.label) and row.label < classes,
        "shard": is_count(row.shard) and row.shard < shards,
        "fold": is_count(row.fold),
        "author_fold": is_count_or_none(row.author_fold),
        "plane": is_text_or_none(row.plane),
        "person": is_text_or_none(row.person),
        "exam": is_text_or_none(row.exam),
        "members": set(REQUIRED_MEMBERS) <= row.members.keys() <= set(MEMBERS)
        and all(is_count(place) for span in row.members.values() for place in span),
    }
    return [name for name, is_good in good.items() if not is_good]


PERSON = "person"
"""The value of ``data.label`` that makes each person a class."""


def apply_label_setting(index: ShardIndex, data: DataConfig) -> ShardIndex:
    """Return the index with the labels that the network learns.

    For persons, ``classes`` are their keyed hashes, sorted, and each row's ``label`` is the place of its person among
    them. All else, the digest too, stays: the samples are the same.

    Raises:
        DataError: The network cannot learn these labels from these shards.
    """
    if data.label != PERSON:
        return index
    problem = label_problem(index, data)
    if problem is not None:
        raise DataError(f"data.label: {problem}")
    persons = sorted({row.person for row in index.samples if row.person is not None})
    place = {person: label for label, person in enumerate(persons)}
    samples = tuple(replace(row, label=place[row.person]) for row in index.samples if row.person is not None)
    return replace(index, classes=tuple(persons), samples=samples)


def label_problem(index: ShardIndex, data: DataConfig) -> str | None:
    """Say in one line why the network cannot learn ``data.label`` from these shards; None if it can."""
    if data.label != PERSON:
        return None
    nameless = sum(row.person is None for row in index.samples)
    if nameless:
        return (
            f"'person' needs the person of every slice, and {nameless} of {len(index)} slices name none; "
            "use shards whose source names persons, or 'class'"
        )
    if index.split_unit == PERSON:
        return (
            "'person' cannot be judged on folds split by person: training knows nobody of the test fold; "
            "build the shards with --split-by slice or exam"
        )
    known = {row.person for row in index.samples if row.fold not in (data.fold, data.val_fold)}
    tested = {row.person for row in index.samples if row.fold == data.fold}
    if tested and not tested & known:
        return (
            f"'person' cannot be judged on fold {data.fold}: nobody in it has a slice in the training folds; "
            "build the shards with --split-by slice"
        )
    return None
