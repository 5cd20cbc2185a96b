"""Summarise a folder of shards from its index alone: counts by class, fold and plane, and signs of leakage.

This module imports the standard library alone, so that a login node can use it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hsadml_dist.data.index import SampleRow, ShardIndex, SkippedSample
from hsadml_dist.data.sample import MASK
from hsadml_dist.shards.identical_images import IdenticalImages, find_identical_images

Group = TypeVar("Group", int, str)


@dataclass(frozen=True, kw_only=True)
class GroupCount:
    """Counts of one class, one fold, or all samples; patients or exams are None if a sample names none."""

    samples: int
    persons: int | None
    exams: int | None
    by_class: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class AuthorFolds:
    """Slices by fold of the data set's publisher, and patients and exams in more than one fold, None if not known."""

    samples: dict[int, int]
    torn_persons: int | None
    torn_exams: int | None


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """Figures of a folder of shards; the field names are keys of ``card.json``.

    Attributes:
        digest: SHA-256 of the samples table.
        unit: Split unit: ``person``, ``exam`` or ``slice``.
        size: Side of each image in pixels.
        megabytes: Size of all tars in 10^6 bytes.
        classes: Class name -> counts, in label order.
        planes: Plane -> number of slices; ``unknown`` for slices without a plane.
        persons_in_two_classes: Number of patients with slices of more than one class.
        repeated_images: Number of images that are a byte-equal copy of another one.
        repeats_across_folds: Number of those whose copy is in another fold, which is leakage.
        identical: The same by groups of identical images, with those in more than one class.
    """

    schema: int
    digest: str
    source: str
    unit: str
    seed: int
    size: int
    shards: int
    megabytes: float
    total: GroupCount
    masks: int
    classes: dict[str, GroupCount]
    folds: dict[int, GroupCount]
    planes: dict[str, int]
    author_folds: AuthorFolds | None
    persons_in_two_classes: int
    repeated_images: int
    repeats_across_folds: int
    identical: IdenticalImages
    skipped: tuple[SkippedSample, ...]


def summarise(index: ShardIndex) -> DatasetSummary:
    """Count the samples of an index by class, patient, fold and plane, and look for leakage."""
    rows = index.samples
    by_label = _group_by(rows, lambda row: row.label)
    by_fold = _group_by(rows, lambda row: row.fold)
    copies = _group_by(rows, lambda row: row.sha256).values()
    return DatasetSummary(
        schema=index.schema,
        digest=index.digest,
        source=index.source,
        unit=index.split_unit,
        seed=index.seed,
        size=index.size,
        shards=len(index.shards),
        megabytes=sum(shard.bytes for shard in index.shards) / 1e6,
        total=_count(rows, index.classes),
        masks=sum(MASK in row.members for row in rows),
        classes={name: _count(by_label[label], index.classes) for label, name in enumerate(index.classes)},
        folds={fold: _count(by_fold[fold], index.classes) for fold in sorted(by_fold)},
        planes=dict(sorted(Counter(row.plane or "unknown" for row in rows).items())),
        author_folds=_author_folds(rows),
        persons_in_two_classes=_count_split(rows, "person", "label") or 0,
        repeated_images=sum(len(group) - 1 for group in copies),
        repeats_across_folds=sum(len(group) - max(Counter(row.fold for row in group).values()) for group in copies),
        identical=find_identical_images(rows, index.classes),
        skipped=index.skipped,
    )


def _group_by(rows: Iterable[SampleRow], key: Callable[[SampleRow], Group]) -> dict[Group, list[SampleRow]]:
    groups: defaultdict[Group, list[SampleRow]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _count(rows: Sequence[SampleRow], classes: Sequence[str]) -> GroupCount:
    labels = Counter(row.label for row in rows)
    return GroupCount(
        samples=len(rows),
        persons=_count_unique(row.person for row in rows),
        exams=_count_unique(row.exam for row in rows),
        by_class={name: labels[label] for label, name in enumerate(classes)},
    )


def _author_folds(rows: Sequence[SampleRow]) -> AuthorFolds | None:
    known = [row for row in rows if row.author_fold is not None]
    if not known:
        return None
    return AuthorFolds(
        samples=dict(sorted(Counter(row.author_fold for row in known if row.author_fold is not None).items())),
        torn_persons=_count_split(known, "person", "author_fold"),
        torn_exams=_count_split(known, "exam", "author_fold"),
    )


def _count_split(rows: Iterable[SampleRow], unit: str, by: str) -> int | None:
    """Return how many values of ``unit`` have rows with more than one value of ``by``; None if no row names a unit."""
    values: defaultdict[str, set[int]] = defaultdict(set)
    for row in rows:
        if (name := getattr(row, unit)) is not None:
            values[name].add(getattr(row, by))
    return sum(len(group) > 1 for group in values.values()) if values else None


def _count_unique(names: Iterable[str | None]) -> int | None:
    unique = set(names)
    return None if None in unique else len(unique)
