"""Assign samples to folds by patient, exam or slice, balanced by class.

The method is greedy stratified group k-fold: groups (patients, exams or slices) are taken from large to small, and each
goes to the fold that holds the smallest share of the group's classes so far. Ties are broken by a hash of seed and
group. So no random generator is needed whose stream could change between versions, and the order of the input does not
matter. The folds are also written in the format of nnU-Net's ``splits_final.json`` (Isensee et al. 2021).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TypedDict

from hsadml_dist.data.index import SPLIT_UNITS, ShardIndex
from hsadml_dist.errors import DataError, UsageError, did_you_mean
from hsadml_dist.shards.source import SourceRecord

LEAST_FOLDS = 2


def check_split(split_by: str | None, folds: int) -> None:
    """Refuse a split that no source could have.

    Raises:
        UsageError: ``split_by`` is neither a split unit nor None, or ``folds`` is below 2.
    """
    if split_by is not None and split_by not in SPLIT_UNITS:
        allowed = ", ".join(SPLIT_UNITS)
        raise UsageError(f"--split-by {split_by!r}: allowed: {allowed}{did_you_mean(split_by, SPLIT_UNITS)}")
    if folds < LEAST_FOLDS:
        raise UsageError(f"--folds {folds}: at least {LEAST_FOLDS}")


def choose_unit(records: Sequence[SourceRecord], wanted: str | None) -> str:
    """Return the unit to split by: the wanted one, else the largest that the source names at all.

    A source that names some of its samples' persons is split by person, and then refused for those that lack one.
    """
    named = (unit for unit in ("person", "exam") if any(getattr(record, unit) is not None for record in records))
    return wanted or next(named, "slice")


def units(records: Sequence[SourceRecord], split_by: str) -> tuple[str, ...]:
    """Return, for each record, the unit that must stay in one fold.

    Raises:
        DataError: A record lacks the identifier that the split needs.
    """
    if split_by == "slice":
        return tuple(json.dumps([record.record_id]) for record in records)
    for record in records:
        if getattr(record, split_by) is None:
            others = ", ".join(unit for unit in SPLIT_UNITS if unit != split_by)
            raise DataError(
                f"--split-by {split_by}: {record.where} names no {split_by}, and every sample needs one; "
                f"name a table's column by --columns {split_by}=NAME, give --persons for figshare, "
                f"or split by another unit ({others})"
            )
    if split_by == "person":
        return tuple(json.dumps([record.person]) for record in records)
    return tuple(json.dumps([record.person, record.exam]) for record in records)


def assign_folds(records: Sequence[SourceRecord], split_by: str, folds: int, seed: int) -> tuple[int, ...]:
    """Return each record's fold: the source's own where it prescribes them, else 0 ... folds - 1.

    Raises:
        DataError: Fewer units than folds, a missing identifier, or prescribed folds that tear a unit apart.
    """
    names = units(records, split_by)
    if any(record.fold is not None for record in records):
        return _prescribed(records, names, split_by)
    count = len(set(names))
    if folds > count:
        raise DataError(
            f"--folds {folds}: more than there are {split_by}s ({count}); allowed: {LEAST_FOLDS} ... {count}"
        )
    return balance(names, [record.class_name for record in records], folds, seed)


def balance(names: Sequence[str], classes: Sequence[str], folds: int, seed: int) -> tuple[int, ...]:
    """Return a fold for each sample, one for all samples of a unit.

    From the largest unit to the smallest, each goes to the fold with the least share of its classes, then the fewest
    samples, then by hash.

    Args:
        names: Each sample's unit.
        classes: Each sample's class.
        folds: How many folds.
        seed: What ties are drawn from.
    """
    totals = Counter(classes)
    content: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, class_name in zip(names, classes, strict=True):
        content[name][class_name] += 1
    held = [Counter[str]() for _ in range(folds)]
    sizes = [0] * folds
    chosen: dict[str, int] = {}
    for name in sorted(content, key=lambda name: (-content[name].total(), seeded_hash(seed, "unit", name))):
        inside = content[name]

        def burden(fold: int, inside: Counter[str] = inside, name: str = name) -> tuple[float, int, str]:
            share = sum(held[fold][c] * n / totals[c] ** 2 for c, n in inside.items())
            return share, sizes[fold], seeded_hash(seed, "fold", name, fold)

        fold = min(range(folds), key=burden)
        chosen[name] = fold
        held[fold].update(inside)
        sizes[fold] += inside.total()
    return tuple(chosen[name] for name in names)


def seeded_hash(seed: int, *parts: str | int) -> str:
    """Return a hash that orders things by chance, the same for the same seed and parts on every machine."""
    return hashlib.sha256(json.dumps([seed, *parts]).encode()).hexdigest()


def _prescribed(records: Sequence[SourceRecord], names: Sequence[str], split_by: str) -> tuple[int, ...]:
    first: dict[str, SourceRecord] = {}
    chosen: list[int] = []
    for record, name in zip(records, names, strict=True):
        if record.fold is None:
            raise DataError(f"fold: {record.where} has none, while others have; give all or none")
        other = first.setdefault(name, record)
        if other.fold != record.fold:
            raise DataError(
                f"fold: one {split_by} is in two folds: {other.where} in {other.fold}, {record.where} in {record.fold}"
                f"; repair the folds or choose another --split-by"
            )
        chosen.append(record.fold)
    if len(set(chosen)) < LEAST_FOLDS:
        raise DataError(f"fold: all samples are in fold {chosen[0]}: at least {LEAST_FOLDS} folds are needed")
    return tuple(chosen)


SPLITS_NAME = "splits.json"


class NnUNetSplit(TypedDict):
    """One fold's entry: the keys of samples to train on, and of those held out."""

    train: list[str]
    val: list[str]


def splits(index: ShardIndex) -> list[NnUNetSplit]:
    """Return one entry a fold, ascending, keys in order of the alphabet."""
    keys = {fold: sorted(index.samples[at].key for at in index.in_folds([fold])) for fold in index.fold_numbers}
    return [
        NnUNetSplit(train=sorted(key for other, held in keys.items() if other != fold for key in held), val=keys[fold])
        for fold in keys
    ]


def splits_text(index: ShardIndex) -> str:
    """Return the text of ``splits.json``."""
    return json.dumps(splits(index), indent=1) + "\n"
