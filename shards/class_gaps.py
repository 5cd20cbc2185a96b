"""Remarks on classes that are alone, in one fold only, or missing from a fold, where an accuracy means less."""

from __future__ import annotations

from collections.abc import Iterator

from hsadml_dist.report.formatting import listed
from hsadml_dist.shards.summary import DatasetSummary


def class_remarks(summary: DatasetSummary) -> Iterator[str]:
    """Yield what a user should know about the classes of a folder of shards and their folds."""
    if len(summary.classes) == 1:
        yield (
            f"Only one class, {next(iter(summary.classes))}: there is nothing to distinguish, and every accuracy on "
            "these shards is 100 %."
        )
    alone = {name: folds[0] for name in summary.classes if len(folds := class_folds(summary, name)) == 1}
    if alone:
        named = listed([f"{name} (fold {fold})" for name, fold in alone.items()])
        yield f"In one fold only: {named}. With that test fold, training has no slice of the class."
    for fold in summary.folds:
        missing = missing_classes(summary, fold)
        if missing:
            there = len(summary.classes) - len(missing)
            yield (
                f"Fold {fold} has no slice of {listed(missing)}: the balanced accuracy on it is over {there} of "
                f"{len(summary.classes)} classes."
            )


def class_folds(summary: DatasetSummary, name: str) -> list[int]:
    """Return the folds that have slices of a class."""
    return [fold for fold, count in summary.folds.items() if count.by_class[name]]


def missing_classes(summary: DatasetSummary, fold: int) -> list[str]:
    """Return the classes that a fold has no slice of."""
    return [name for name, count in summary.folds[fold].by_class.items() if not count]
