"""What is in a folder of shards, from its index alone. Pure; the standard library suffices."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hsadml_dist.data.index import SampleRow, ShardIndex


@dataclass(frozen=True, kw_only=True)
class GroupCount:
    """Counts of one class or one fold.

    Attributes:
        samples: Slices.
        persons: Different persons, None where some samples name none.
        by_class: Class name to slices.
    """

    samples: int
    persons: int | None
    by_class: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A folder of shards in numbers.

    Attributes:
        digest: The folder's identity.
        split_unit: What no two folds share.
        size: Side of each image in pixels.
        shards: Number of tars.
        megabytes: Size of all tars in units of 10^6 bytes.
        total: Counts of all samples.
        exams: Different exams, None where some samples name none.
        classes: Class name to counts, in label order.
        folds: Fold to counts, ascending.
    """

    digest: str
    split_unit: str
    size: int
    shards: int
    megabytes: float
    total: GroupCount
    exams: int | None
    classes: dict[str, GroupCount]
    folds: dict[int, GroupCount]


def summarise(index: ShardIndex) -> Summary:
    """Count an index's samples by class, person and fold."""
    by_label: defaultdict[int, list[SampleRow]] = defaultdict(list)
    by_fold: defaultdict[int, list[SampleRow]] = defaultdict(list)
    for row in index.samples:
        by_label[row.label].append(row)
        by_fold[row.fold].append(row)
    return Summary(
        digest=index.digest,
        split_unit=index.split_unit,
        size=index.size,
        shards=len(index.shards),
        megabytes=sum(shard.bytes for shard in index.shards) / 1e6,
        total=_count(index.samples, index.classes),
        exams=_different(row.exam for row in index.samples),
        classes={name: _count(by_label[label], index.classes) for label, name in enumerate(index.classes)},
        folds={fold: _count(by_fold[fold], index.classes) for fold in sorted(by_fold)},
    )


def _count(rows: Sequence[SampleRow], classes: Sequence[str]) -> GroupCount:
    labels = Counter(row.label for row in rows)
    return GroupCount(
        samples=len(rows),
        persons=_different(row.person for row in rows),
        by_class={name: labels[label] for label, name in enumerate(classes)},
    )


def _different(names: Iterable[str | None]) -> int | None:
    unique = set(names)
    return None if None in unique else len(unique)
