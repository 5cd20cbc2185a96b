"""Which slices stand for all where all would take too long.

Shapes: N slices, K slices drawn, C classes that occur.
"""

from __future__ import annotations

import numpy as np

from hsadml_dist.evaluation.scores import Ints


def stratified(label_N: Ints, *, most: int, seed: int) -> Ints:
    """Return the positions (K,) of at most ``most`` slices, ascending, drawn without replacement class by class.

    Each class keeps its share, rounded by largest remainders (of equal ones, the lower class's first), and at least
    one slice. Above ``most`` classes that cannot be: then slices are drawn from all alike.

    Args:
        label_N: Each slice's class.
        most: Slices to draw; as many or fewer are all taken.
        seed: Seed of the draw.

    Returns:
        Positions, int64: the same for the same labels and seed.
    """
    if len(label_N) <= most:
        return np.arange(len(label_N), dtype=np.int64)
    order_N = np.random.default_rng(seed).permutation(len(label_N))
    present_C, count_C = np.unique(label_N, return_counts=True)
    if len(present_C) > most:
        return np.sort(order_N[:most])
    quota_C = 1 + _apportioned(count_C - 1, most - len(present_C))
    parts = [order_N[label_N[order_N] == label][:quota] for label, quota in zip(present_C, quota_C, strict=True)]
    return np.sort(np.concatenate(parts))


def _apportioned(count_C: Ints, room: int) -> Ints:
    """Return ``room`` shared in proportion to the counts, in whole numbers; a share never exceeds its count."""
    share_C, remainder_C = np.divmod(count_C * room, count_C.sum())
    left = room - int(share_C.sum())
    share_C[np.argsort(-remainder_C, kind="stable")[:left]] += 1
    return share_C
