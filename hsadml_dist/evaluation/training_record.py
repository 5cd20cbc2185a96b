"""The record of what a run was trained on: keyed hashes of the images and patients of its training folds.

``trained_on.json`` in the run folder holds the hashes, ``trained_on.key`` next to it the random key of this run, which
only its owner can read. The file without the key reveals nothing, not even whether two runs share a patient. With both,
it can be found out whether an image or pseudonym at hand was in the training; a run folder that is passed on without
the key has no answer. The key is not the id key, because images of shards built with another id key must be recognised.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hsadml_dist.atomic import write_bytes, write_text
from hsadml_dist.data.contents import ShardContents
from hsadml_dist.data.index import SampleRow, ShardIndex
from hsadml_dist.json_parsing import INVALID, parse_json
from hsadml_dist.run.folder import RunFolder

RECORD_VERSION = 1
KEY_BYTES = 32
HASH_DIGITS = 16
"""64 bits: among a million images against a million others, a chance match has a probability of 5e-8."""

PIXELS, SOURCES, FILES, PERSONS = "pixels", "sources", "files", "persons"
"""Kinds of hashes: stored image, source image (see :mod:`hsadml_dist.data.contents`), PNG file, patient."""
GENERATED = "phantom"
"""The source of generated patients and images."""
IMAGE_KINDS = (PIXELS, SOURCES, FILES)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleIdentities:
    """What identifies the samples of some folds, one entry per sample; not keyed, so never written.

    Attributes:
        digest: Digest of their shards.
        size: Side of the stored images in pixels.
        id_key: Fingerprint of the id key; None if the shards do not have it.
        values: Kind of hash to the sample's value, None for an unknown patient. A kind that the shards lack is missing.
    """

    digest: str
    size: int
    id_key: str | None
    values: Mapping[str, Sequence[str | None]]


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a run was trained on.

    Attributes:
        digest: Digest of the shards of the training.
        classes: The class names that the run has learnt, in label order; None if its classes are patients.
        digests: That digest, and those of the runs that the initial weights come from.
        sizes: Sides of the images in these shards.
        id_keys: Keyed hashes of the fingerprints of their id keys, None for an unknown one.
        hashes: Kind of hash to the distinct keyed hashes.
        partial: Kinds that some of the training's samples lack, so that a missing hash proves nothing.
        key: The key; None if it is not available, so that nothing can be compared.
    """

    digest: str
    classes: tuple[str, ...] | None
    digests: frozenset[str]
    sizes: frozenset[int]
    id_keys: frozenset[str | None]
    hashes: Mapping[str, frozenset[str]]
    partial: frozenset[str]
    key: bytes | None = field(repr=False)

    def is_complete(self, kind: str) -> bool:
        """Return whether every sample of the training has a hash of this kind."""
        return kind in self.hashes and kind not in self.partial

    def matches(self, kind: str, value: str | None) -> bool:
        """Return whether the training had a sample with this value."""
        if self.key is None or value is None or kind not in self.hashes:
            return False
        return keyed_hash(self.key, kind, value) in self.hashes[kind]

    def has_id_key(self, fingerprint: str | None) -> bool:
        """Return whether all shards of the training were certainly built with this id key."""
        found = _id_key_hash(self.key, fingerprint)
        return found is not None and self.id_keys == {found}

    def to_json(self) -> str:
        """Return the text of ``trained_on.json``."""
        values = {
            "version": RECORD_VERSION,
            "digest": self.digest,
            "classes": self.classes,
            "digests": sorted(self.digests),
            "sizes": sorted(self.sizes),
            "id_keys": sorted(self.id_keys, key=str),
            "partial": sorted(self.partial),
            "key": self.key and _fingerprint(self.key),
            "hashes": {kind: sorted(found) for kind, found in self.hashes.items()},
        }
        return json.dumps(values, indent=0) + "\n"


def keyed_hash(key: bytes, kind: str, value: str) -> str:
    """Return the keyed hash of a value, in hex."""
    return hmac.digest(key, f"{kind} {value}".encode(), "sha256").hex()[:HASH_DIGITS]


def identify(index: ShardIndex, contents: ShardContents | None, positions: Sequence[int]) -> SampleIdentities:
    """Return what identifies the samples at ``positions`` of the index."""
    rows = [index.samples[position] for position in positions]
    values: dict[str, Sequence[str | None]] = {
        FILES: [row.sha256 for row in rows],
        PERSONS: [_patient(index, row) for row in rows],
    }
    if contents is not None:
        values[PIXELS] = [contents.pixels[position] for position in positions]
        # A generated image is drawn at the stored size: its own hash cannot recognise it at another.
        if index.source != GENERATED:
            values[SOURCES] = [contents.sources[position] for position in positions]
    id_key = None if contents is None else contents.id_key
    return SampleIdentities(digest=index.digest, size=index.size, id_key=id_key, values=values)


def build_record(samples: SampleIdentities, classes: tuple[str, ...] | None, key: bytes) -> TrainingRecord:
    """Return the record of a training on ``samples``; PNG files identify them only where the pixels are not hashed."""
    kinds = {kind: found for kind, found in samples.values.items() if kind != FILES or PIXELS not in samples.values}
    return TrainingRecord(
        digest=samples.digest,
        classes=classes,
        digests=frozenset([samples.digest]),
        sizes=frozenset([samples.size]),
        id_keys=frozenset([_id_key_hash(key, samples.id_key)]),
        hashes={
            kind: frozenset(keyed_hash(key, kind, value) for value in found if value is not None)
            for kind, found in kinds.items()
        },
        partial=frozenset(kind for kind, found in kinds.items() if None in found),
        key=key,
    )


def read_record(run: RunFolder) -> TrainingRecord | None:
    """Return the record in a run folder; None, with a warning unless there is none, if it cannot be read."""
    try:
        values = parse_json(run.trained_on.read_bytes())
        if values["version"] != RECORD_VERSION:
            raise ValueError(f"version {values['version']!r}")
        return _from_json(values, _matching_key(run, values["key"]))
    except FileNotFoundError:
        return None
    except (OSError, *INVALID) as error:
        log.warning("%s: cannot be read (%s); continuing without it", run.trained_on, error)
        return None


def read_key(run: RunFolder) -> bytes | None:
    """Return the key in a run folder, or None if there is none or it cannot be read."""
    try:
        key = run.trained_on_key.read_bytes()
    except OSError:
        return None
    return key if len(key) == KEY_BYTES else None


def write_record(run: RunFolder, record: TrainingRecord) -> None:
    """Write or replace the record, its key first.

    Raises:
        OSError: The run folder cannot be written.
    """
    if record.key is not None and _matching_key(run, _fingerprint(record.key)) is None:
        write_bytes(run.trained_on_key, record.key, mode=0o600)
    write_text(run.trained_on, record.to_json())


def join_records(record: TrainingRecord, before: TrainingRecord | None) -> TrainingRecord:
    """Return the record of a training whose initial weights come from another one.

    Args:
        record: The training's own record.
        before: The record of the earlier training, with the same key; None if it is unknown, so that no missing hash
            proves anything.
    """
    kinds = frozenset([*IMAGE_KINDS, PERSONS])
    if before is None or before.key != record.key:
        return dataclasses.replace(record, partial=kinds)
    incomplete = (kind for kind in kinds if not (record.is_complete(kind) and before.is_complete(kind)))
    return dataclasses.replace(
        record,
        digests=record.digests | before.digests,
        sizes=record.sizes | before.sizes,
        id_keys=record.id_keys | before.id_keys,
        hashes={
            kind: record.hashes.get(kind, frozenset()) | before.hashes.get(kind, frozenset())
            for kind in record.hashes.keys() | before.hashes.keys()
        },
        partial=frozenset(incomplete),
    )


def add_pixels(record: TrainingRecord, pixels: Sequence[str]) -> TrainingRecord:
    """Return the record with the hashes of all stored images of the training."""
    key = record.key
    if key is None:
        return record
    hashes = frozenset(keyed_hash(key, PIXELS, value) for value in pixels) | record.hashes.get(PIXELS, frozenset())
    return dataclasses.replace(record, hashes={**record.hashes, PIXELS: hashes})


def _patient(index: ShardIndex, row: SampleRow) -> str | None:
    """Return what identifies a row's patient. Generated patients are numbered: only the seed tells them apart."""
    if row.person is None or index.source != GENERATED:
        return row.person
    return f"{GENERATED} {index.seed} {row.person}"


def _id_key_hash(key: bytes | None, fingerprint: str | None) -> str | None:
    return None if key is None or fingerprint is None else keyed_hash(key, "id_key", fingerprint)


def _fingerprint(key: bytes) -> str:
    return keyed_hash(key, "key", "")


def _matching_key(run: RunFolder, fingerprint: str | None) -> bytes | None:
    """Return the key of the run, or None if it is missing, not readable or another one."""
    key = read_key(run)
    return key if key is not None and _fingerprint(key) == fingerprint else None


def _from_json(values: Mapping[str, Any], key: bytes | None) -> TrainingRecord:
    return TrainingRecord(
        digest=values["digest"],
        classes=None if values["classes"] is None else tuple(values["classes"]),
        digests=frozenset(values["digests"]),
        sizes=frozenset(values["sizes"]),
        id_keys=frozenset(values["id_keys"]),
        hashes={kind: frozenset(found) for kind, found in values["hashes"].items()},
        partial=frozenset(values["partial"]),
        key=key,
    )
