"""What the network learns to tell apart: the classes of the shards, or their persons, as a view of the index.

All that reads labels or names classes goes through :func:`labelled`, so that training, verdict, predictions and
exported files mean the same by a label. This file imports the standard library alone, so that a login node can refuse
what cannot be learnt.
"""

from __future__ import annotations

from dataclasses import replace

from hsadml_dist.config.data import DataConfig
from hsadml_dist.data.index import ShardIndex
from hsadml_dist.errors import DataError

PERSON = "person"
"""The value of ``data.label`` that makes each person a class."""


def apply_label_setting(index: ShardIndex, data: DataConfig) -> ShardIndex:
    """Return the index with the labels that the network learns.

    For persons, ``classes`` are their keyed hashes, sorted, and each row's ``label`` is the place of its person among
    them. All else, the digest too, stays: the samples are the same.

    Raises:
        DataError: The network cannot learn these labels from these shards.
    """
    if data.label != PERSON:
        return index
    problem = label_problem(index, data)
    if problem is not None:
        raise DataError(f"data.label: {problem}")
    persons = sorted({row.person for row in index.samples if row.person is not None})
    place = {person: label for label, person in enumerate(persons)}
    samples = tuple(replace(row, label=place[row.person]) for row in index.samples if row.person is not None)
    return replace(index, classes=tuple(persons), samples=samples)


def label_problem(index: ShardIndex, data: DataConfig) -> str | None:
    """Say in one line why the network cannot learn ``data.label`` from these shards; None if it can."""
    if data.label != PERSON:
        return None
    nameless = sum(row.person is None for row in index.samples)
    if nameless:
        return (
            f"'person' needs the person of every slice, and {nameless} of {len(index)} slices name none; "
            "use shards whose source names persons, or 'class'"
        )
    if index.split_unit == PERSON:
        return (
            "'person' cannot be judged on folds split by person: training knows nobody of the test fold; "
            "build the shards with --split-by slice or exam"
        )
    known = {row.person for row in index.samples if row.fold not in (data.fold, data.val_fold)}
    tested = {row.person for row in index.samples if row.fold == data.fold}
    if tested and not tested & known:
        return (
            f"'person' cannot be judged on fold {data.fold}: nobody in it has a slice in the training folds; "
            "build the shards with --split-by slice"
        )
    return None
