"""Which sample goes into which tar, in which order. Pure.

A tar holds samples of one fold, so that a run need not even open the tars of its test fold. Within a fold the samples
of all persons are mixed by a hash of the seed: a reader that goes through whole tars sees varied persons, not forty
slices of one. A fold's tars differ in length by at most one sample.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from hsadml_dist.shards.record import SourceRecord
from hsadml_dist.shards.split import seeded_hash


def plan_shards(
    records: Sequence[SourceRecord], folds: Sequence[int], samples_per_shard: int, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Return for each tar the places in ``records`` of its samples, in order; folds ascending."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place, fold in enumerate(folds):
        members[fold].append(place)
    plan: list[tuple[int, ...]] = []
    for fold in sorted(members):
        mixed = sorted(members[fold], key=lambda place: seeded_hash(seed, "order", records[place].record_id))
        plan.extend(_even(mixed, samples_per_shard))
    return tuple(plan)


def shard_name(number: int) -> str:
    """Return the file name of tar ``number``."""
    return f"shard-{number:05d}.tar"


def _even(places: Sequence[int], most: int) -> list[tuple[int, ...]]:
    count = -(-len(places) // most)
    edges = [len(places) * part // count for part in range(count + 1)]
    return [tuple(places[low:high]) for low, high in pairwise(edges)]
