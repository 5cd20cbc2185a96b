"""What a report says in words: the verdict in one sentence, its facts, and what stands against it. Pure text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NONE = "-"
_FEW_UNITS = 20


def headline(result: Mapping[str, Any]) -> str:
    """Return the verdict in one sentence: the figure, its interval, its split unit and the control."""
    spans = result["intervals"]
    whose = f" of {counted(result['persons'], 'person')}" if result["persons"] is not None else ""
    span = spans["knn_accuracy"]
    bounds = f" ({level_text(spans)} interval by {spans['interval_unit']}: {span_text(span)})" if span else ""
    return (
        f"{result['knn_accuracy']:.1%} of {counted(result['slices'], 'unseen slice')}{whose} have their nearest"
        f" neighbour, among {counted(result['reference_slices'], 'training slice')}, in the right class{bounds}."
        f" Raw pixels alone reach {result['raw_pixel_knn']:.1%}. Folds are split by {result['split_unit']}."
    )


def remarks(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader must know before believing the figures; none where nothing stands against them."""
    spans = result["intervals"]
    if result["split_unit"] != "person":
        yield (
            f"The folds are split by {result['split_unit']}, not by person: slices of one person may stand in training"
            " and test, which flatters every figure here. Compare with the raw-pixel control only."
        )
    if result["shared_persons"]:
        yield f"{counted(result['shared_persons'], 'person')} of the test fold also occur in the training folds."
    if result["persons"] is None:
        yield "The data name no persons: whether somebody occurs in training and test cannot be told."
    if spans["interval_unit"] != "person":
        unit = spans["interval_unit"]
        yield f"The intervals are drawn by {unit}, not by person: they are narrower than they should be."
    if spans["units"] < _FEW_UNITS:
        unit = spans["interval_unit"]
        few = counted(spans["units"], unit)
        yield f"Only {few} in the test fold: the intervals are rough and tend to be too narrow."
    span = spans["knn_accuracy"]
    if span and span[0] <= result["raw_pixel_knn"]:
        yield "The k-NN accuracy does not clear the control: its interval reaches down to what raw pixels give."


def facts(result: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Return the header's short facts, (name, value)."""
    persons = "not named" if result["persons"] is None else f"{result['persons']:,}"
    return (
        ("split by", result["split_unit"]),
        ("test fold", str(result["fold"])),
        ("test persons", persons),
        ("test slices", f"{result['slices']:,}"),
        ("reference slices", f"{result['reference_slices']:,}"),
        ("classes", f"{len(result['classes']):,}"),
        ("weights", f"step {result['checkpoint']['step']:,}, {result['chosen_by']}"),
    )


def span_text(span: Sequence[float] | None) -> str:
    """Return an interval in percent."""
    return NONE if span is None else f"{span[0]:.1%} to {span[1]:.1%}"


def level_text(spans: Mapping[str, Any]) -> str:
    """Return the intervals' level in percent."""
    return f"{spans['level']:.0%}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
