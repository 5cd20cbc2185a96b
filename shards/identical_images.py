"""Find images that are identical after the conversion, and what that means for classes and folds.

Equal hashes of stored images mean equal pixels, whatever the names and formats of the files were.
This module imports the standard library alone, so that a login node can use it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hsadml_dist.data.index import SampleRow
from hsadml_dist.report.formatting import counted

MAX_EXAMPLES = 20
"""Label conflicts that the card lists."""
_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class LabelConflict:
    """One image under several classes: sample key and class of its first copy in each of two classes."""

    first_key: str
    first_class: str
    second_key: str
    second_class: str

    def __str__(self) -> str:
        return f"{self.first_key} ({self.first_class}) and {self.second_key} ({self.second_class})"


@dataclass(frozen=True, kw_only=True)
class IdenticalImages:
    """Groups of identical images, two or more in each.

    Attributes:
        groups: Number of groups.
        across_folds: Groups in more than one fold, which is leakage.
        across_author_folds: Groups in more than one fold of the publisher; None if there are no such folds.
        label_conflicts: Groups in more than one class.
        conflict_examples: At most :data:`MAX_EXAMPLES` of these.
    """

    groups: int
    across_folds: int
    across_author_folds: int | None
    label_conflicts: int
    conflict_examples: tuple[LabelConflict, ...]


def find_identical_images(rows: Sequence[SampleRow], classes: Sequence[str]) -> IdenticalImages:
    """Group the samples by the hash of their image."""
    by_hash: defaultdict[str, list[SampleRow]] = defaultdict(list)
    for row in rows:
        by_hash[row.sha256].append(row)
    groups = [group for group in by_hash.values() if len(group) > 1]
    conflicts = [conflict for group in groups if (conflict := _label_conflict(group, classes))]
    published = any(row.author_fold is not None for row in rows)
    return IdenticalImages(
        groups=len(groups),
        across_folds=_count_torn(groups, "fold"),
        across_author_folds=_count_torn(groups, "author_fold") if published else None,
        label_conflicts=len(conflicts),
        conflict_examples=tuple(conflicts[:MAX_EXAMPLES]),
    )


def join_copies(groups: Sequence[str], images: Sequence[str | None]) -> tuple[str, ...]:
    """Return the groups of samples, joined where samples of different groups have the same image.

    Args:
        groups: Group of each sample.
        images: Hash of each sample's image; None for a sample without one.

    Returns:
        For each sample the name of one of the joined groups, the same for all of them.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[str, str] = {}
    for group, image in zip(groups, images, strict=True):
        if image is not None:
            one, other = sorted((root(first.setdefault(image, group)), root(group)))
            parent[other] = one  # the lowest name, so that the result does not depend on the order of the samples
    return tuple(root(group) for group in groups)


def identical_remarks(found: IdenticalImages) -> Iterator[str]:
    """Yield what a user should know about identical images."""
    if found.label_conflicts:
        named = "; ".join(map(str, found.conflict_examples[:_MAX_NAMED]))
        yield (
            f"{counted(found.label_conflicts, 'label conflict')}: the same image is in more than one class: {named}"
            f"{'; ...' if found.label_conflicts > _MAX_NAMED else ''}."
        )
    if found.across_author_folds:
        yield f"{counted(found.across_author_folds, 'group')} of identical images across the publisher's folds."
    if found.across_folds:
        yield (
            f"{counted(found.across_folds, 'group')} of identical images across folds, which inflates every accuracy; "
            "--keep-copies-together keeps each group in one fold."
        )


def _label_conflict(group: Sequence[SampleRow], classes: Sequence[str]) -> LabelConflict | None:
    first = group[0]
    second = next((row for row in group if row.label != first.label), None)
    if second is None:
        return None
    return LabelConflict(
        first_key=first.key,
        first_class=classes[first.label],
        second_key=second.key,
        second_class=classes[second.label],
    )


def _count_torn(groups: Sequence[Sequence[Any]], by: str) -> int:
    return sum(len({getattr(row, by) for row in group}) > 1 for group in groups)
