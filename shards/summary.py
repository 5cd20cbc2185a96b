"""What is in a folder of shards, from its index alone. Pure; the standard library suffices."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hsadml_dist.data.index import SampleRow, ShardIndex, SkippedSample
from hsadml_dist.data.sample import MASK

Name = TypeVar("Name", int, str)


@dataclass(frozen=True, kw_only=True)
class GroupCount:
    """Counts of one class or one fold.

    Attributes:
        samples: Slices.
        persons: Different persons, None where some samples name none.
        exams: Different exams, None where some samples name none.
        by_class: Class name to slices.
    """

    samples: int
    persons: int | None
    exams: int | None
    by_class: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class AuthorFolds:
    """The folds that the data set's publisher made, and what they tear apart.

    Attributes:
        samples: Fold to slices.
        torn_persons: Persons with slices in more than one fold, None where persons are not known.
        torn_exams: Exams with slices in more than one fold, None where exams are not known.
    """

    samples: dict[int, int]
    torn_persons: int | None
    torn_exams: int | None


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """A folder of shards in numbers.

    Attributes:
        schema: Version of the format.
        digest: The folder's identity.
        source: What the samples came from.
        unit: What no two folds share: ``person``, ``exam`` or ``slice``.
        seed: What folds and order were drawn from.
        size: Side of each image in pixels.
        shards: Number of tars.
        megabytes: Size of all tars in units of 10^6 bytes.
        total: Counts of all samples.
        masks: Slices with a lesion's mask.
        classes: Class name to counts, in label order.
        folds: Fold to counts, ascending.
        planes: Plane to slices; ``unknown`` for those without.
        author_folds: The publisher's folds, None where there are none.
        persons_in_two_classes: Persons with slices of more than one class.
        repeated_images: Images that are a byte-equal copy of another one.
        repeats_across_folds: Of those, the ones whose copy is in another fold: a leak.
        skipped: Samples of the source that could not be used.
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
    skipped: tuple[SkippedSample, ...]


def summarise(index: ShardIndex) -> DatasetSummary:
    """Count an index's samples by class, person, fold and plane, and look for leaks."""
    rows = index.samples
    by_label = _grouped(rows, lambda row: row.label)
    by_fold = _grouped(rows, lambda row: row.fold)
    copies = _grouped(rows, lambda row: row.sha256).values()
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
        persons_in_two_classes=_torn(rows, "person", "label") or 0,
        repeated_images=sum(len(group) - 1 for group in copies),
        repeats_across_folds=sum(len(group) - max(Counter(row.fold for row in group).values()) for group in copies),
        skipped=index.skipped,
    )


def _grouped(rows: Iterable[SampleRow], name: Callable[[SampleRow], Name]) -> dict[Name, list[SampleRow]]:
    groups: defaultdict[Name, list[SampleRow]] = defaultdict(list)
    for row in rows:
        groups[name(row)].append(row)
    return groups


def _count(rows: Sequence[SampleRow], classes: Sequence[str]) -> GroupCount:
    labels = Counter(row.label for row in rows)
    return GroupCount(
        samples=len(rows),
        persons=_different(row.person for row in rows),
        exams=_different(row.exam for row in rows),
        by_class={name: labels[label] for label, name in enumerate(classes)},
    )


def _author_folds(rows: Sequence[SampleRow]) -> AuthorFolds | None:
    known = [row for row in rows if row.author_fold is not None]
    if not known:
        return None
    return AuthorFolds(
        samples=dict(sorted(Counter(row.author_fold for row in known if row.author_fold is not None).items())),
        torn_persons=_torn(known, "person", "author_fold"),
        torn_exams=_torn(known, "exam", "author_fold"),
    )


def _torn(rows: Iterable[SampleRow], unit: str, by: str) -> int | None:
    """Return how many units have rows of more than one value of ``by``; None where no row names its unit."""
    values: defaultdict[str, set[int]] = defaultdict(set)
    for row in rows:
        if (name := getattr(row, unit)) is not None:
            values[name].add(getattr(row, by))
    return sum(len(found) > 1 for found in values.values()) if values else None


def _different(names: Iterable[str | None]) -> int | None:
    unique = set(names)
    return None if None in unique else len(unique)
