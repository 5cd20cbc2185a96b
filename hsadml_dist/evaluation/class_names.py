"""The class names that a run has learnt, compared with those of the shards that it is to classify."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hsadml_dist.config import Recipe
from hsadml_dist.data.index import ShardIndex
from hsadml_dist.errors import DataError, did_you_mean
from hsadml_dist.evaluation.training_lineage import training_shards
from hsadml_dist.evaluation.training_record import read_record
from hsadml_dist.json_parsing import INVALID, parse_json
from hsadml_dist.run.folder import RunFolder

MAX_LISTED = 24
"""Class names that a message lists."""

ClassMap = Mapping[str, str]
"""Class name of the shards to that of the run."""


def learnt_classes(run: RunFolder, recipe: Recipe, trained_on: str) -> tuple[str, ...] | None:
    """Return the class names of a run in label order, as read from the source of its shards.

    Args:
        run: The run folder.
        recipe: The settings of the run.
        trained_on: Digest of the shards that the weights were trained on.

    Returns None if neither the run folder nor the recipe's shards have them any more.
    """
    record = read_record(run)
    if record is not None and record.digest == trained_on and record.classes is not None:
        return record.classes
    with contextlib.suppress(OSError, *INVALID):
        result = parse_json(run.result.read_bytes())
        if result["data_digest"] == trained_on:
            return tuple(result["classes"])
    shards = training_shards(recipe, trained_on)
    return None if shards is None else shards.index.classes


def require_same_classes(index: ShardIndex, learnt: Sequence[str], where: str) -> None:
    """Raise DataError, with both lists, unless the shards have the learnt classes in the same order."""
    if list(index.classes) == list(learnt):
        return
    unknown = [name for name in index.classes if name not in learnt]
    example = unknown[0] if unknown else index.classes[0]
    pair = f"{example}={'NAME' if unknown else example}"
    reason = "" if unknown or len(index.classes) != len(learnt) else "the same names in another order; "
    raise DataError(
        f"{where}: has the classes {_listed(index.classes)}; the run has learnt {_listed(learnt)}; {reason}"
        f"use shards with these names in this order, or map them by name with --map-class {pair}"
    )


def map_classes(index: ShardIndex, learnt: Sequence[str], class_map: ClassMap, where: str) -> ShardIndex:
    """Return the index with the classes of the run.

    Args:
        index: Index of the shards.
        learnt: Class names of the run in label order.
        class_map: Names that differ; every other name stands for itself.
        where: The shards, for messages.

    Raises:
        DataError: A name is not a class of the shards, or maps to none of the run.
    """
    for name in class_map:
        if name not in index.classes:
            problem = f"{where} has no such class{did_you_mean(name, index.classes)}"
            raise DataError(f"--map-class {name}: {problem}; its classes: {_listed(index.classes)}")
    label = {name: number for number, name in enumerate(learnt)}
    for name in index.classes:
        mapped = class_map.get(name, name)
        if mapped not in label:
            problem = f"the run has no class {mapped!r}{did_you_mean(mapped, learnt)}"
            raise DataError(f"--map-class {name}: {problem}; its classes: {_listed(learnt)}")
    labels = [label[class_map.get(name, name)] for name in index.classes]
    samples = tuple(replace(row, label=labels[row.label]) for row in index.samples)
    return replace(index, classes=tuple(learnt), samples=samples)


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)})" if len(names) > MAX_LISTED else ""
    return f"({', '.join(names[:MAX_LISTED])}{more})"
