"""What is taken for what, told in a few lines however many classes there are.

Shapes: N slices, P pairs of classes, C classes that occur.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hsadml_dist.evaluation.scores import Ints

MAX_CONFUSED_PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Slices of one class that are taken for another: the labels of both, and how many."""

    label: int
    said: int
    slices: int


@dataclass(frozen=True, kw_only=True)
class ConfusionSummary:
    """How the slices of the classes come out, and which classes are mixed up most.

    Attributes:
        classes: Classes with test slices.
        all_right: Those of them with every slice right.
        none_right: Those with no slice right.
        pairs: Number of different pairs (true class, class said) among the wrong slices.
        worst: The pairs with most slices, at most :data:`MAX_CONFUSED_PAIRS`; of equal ones the lower labels first.
    """

    classes: int
    all_right: int
    none_right: int
    pairs: int
    worst: tuple[ConfusedPair, ...]


def confusions(label_N: Ints, said_N: Ints) -> ConfusionSummary:
    """Return what is taken for what; memory and time grow with the slices, not with the classes."""
    wrong_N = label_N != said_N
    pair_P2, count_P = np.unique(np.stack([label_N, said_N], axis=1)[wrong_N], axis=0, return_counts=True)
    # A stable sort: pairs come by label, and equal counts keep that order.
    worst = np.argsort(-count_P, kind="stable")[:MAX_CONFUSED_PAIRS]
    present_C, of_N = np.unique(label_N, return_inverse=True)
    wrong_C = np.bincount(of_N, weights=wrong_N, minlength=len(present_C))
    return ConfusionSummary(
        classes=len(present_C),
        all_right=int((wrong_C == 0).sum()),
        none_right=int((wrong_C == np.bincount(of_N, minlength=len(present_C))).sum()),
        pairs=len(count_P),
        worst=tuple(
            ConfusedPair(label=int(pair_P2[place, 0]), said=int(pair_P2[place, 1]), slices=int(count_P[place]))
            for place in worst
        ),
    )
