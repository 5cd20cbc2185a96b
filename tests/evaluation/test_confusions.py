"""What is taken for what, against counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hsadml_dist.evaluation.confusions import MAX_CONFUSED_PAIRS, ConfusedPair, confusions


def test_a_few_slices_by_hand() -> None:
    label, said = np.array([0, 0, 0, 4, 4, 7, 9]), np.array([0, 4, 4, 4, 4, 0, 4])
    found = confusions(label, said)
    assert (found.classes, found.all_right, found.none_right, found.pairs) == (4, 1, 2, 3)
    assert found.worst == (
        ConfusedPair(label=0, said=4, slices=2),
        ConfusedPair(label=7, said=0, slices=1),
        ConfusedPair(label=9, said=4, slices=1),
    )


def test_many_classes_as_a_count_of_pairs_has_them() -> None:
    generator = np.random.default_rng(0)
    label, said = generator.integers(0, 300, 5000), generator.integers(0, 40, 5000)
    found = confusions(label, said)
    pairs = Counter((one, other) for one, other in zip(label.tolist(), said.tolist(), strict=True) if one != other)
    expected = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:MAX_CONFUSED_PAIRS]
    assert [((one.label, one.said), one.slices) for one in found.worst] == expected
    assert (found.pairs, found.classes) == (len(pairs), len(set(label.tolist())))


def test_nothing_wrong_leaves_no_pair() -> None:
    found = confusions(np.array([3, 3, 5]), np.array([3, 3, 5]))
    assert (found.classes, found.all_right, found.none_right, found.pairs, found.worst) == (2, 2, 0, 0, ())
