from dataclasses import replace

from hsadml_dist.shards.identical_images import find_identical_images, identical_remarks, join_copies
from tests.shards.test_summary import ROWS

CLASSES = ("a", "b")


def with_hashes(**hashes):
    """Return 16 samples, all images different but those named."""
    return [replace(row, sha256=hashes.get(f"n{number}", row.sha256)) for number, row in enumerate(ROWS)]


def test_find_identical_images_counts_groups():
    # Folds are 0 for slices 0-3 and 8-11; author folds 1 for 0, 1, 4, 5, ...; class b from 8 on.
    found = find_identical_images(with_hashes(n0="x", n1="x", n4="y", n5="y", n3="y", n2="z", n8="z"), CLASSES)
    assert (found.groups, found.across_folds, found.across_author_folds, found.label_conflicts) == (3, 1, 2, 1)
    [conflict] = found.conflict_examples
    assert (conflict.first_key, conflict.first_class) == (ROWS[2].key, "a")
    assert (conflict.second_key, conflict.second_class) == (ROWS[8].key, "b")
    [first, *_] = identical_remarks(found)
    assert first.startswith("1 label conflict") and ROWS[2].key in first and ROWS[8].key in first


def test_find_identical_images_of_different_images_is_silent():
    found = find_identical_images([replace(row, author_fold=None) for row in ROWS], CLASSES)
    assert (found.groups, found.across_folds, found.across_author_folds, found.label_conflicts) == (0, 0, None, 0)
    assert not list(identical_remarks(found))


def test_join_copies_joins_chains_of_groups_in_any_order():
    groups, images = ["p", "q", "q", "r", "s", "t", "t"], ["1", "1", "2", "2", "3", None, None]
    assert join_copies(groups, images) == ("p", "p", "p", "p", "s", "t", "t")
    turned = join_copies(groups[::-1], images[::-1])
    assert turned[::-1] == ("p", "p", "p", "p", "s", "t", "t")
