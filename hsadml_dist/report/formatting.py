"""What a report says in words: the verdict in one sentence, its facts, and what stands against it. Pure text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NONE = "-"
CONTROLS = {"raw_pixels": "raw pixels", "low_level": "low-level features"}
"""Methods without learning, and what a sentence calls them."""
CONTROL_KEYS = {"raw_pixels": "raw_pixel_knn", "low_level": "low_level_knn"}
"""The figure of a result that holds a control's accuracy."""
POOR_CALIBRATION = 0.1
"""Expected calibration error from which a page warns: probabilities ten points off on average."""
_FEW_UNITS = 20
_CLOSE = 0.1
"""A control nearer than this to the k-NN accuracy is worth a remark."""


def headline(result: Mapping[str, Any]) -> str:
    """Return the verdict in one sentence: the figure, its interval, its split unit and the controls."""
    spans = result["intervals"]
    whose = f" of {counted(result['persons'], 'person')}" if result["persons"] is not None else ""
    span = spans["knn_accuracy"]
    bounds = f" ({level_text(spans)} interval by {spans['interval_unit']}: {span_text(span)})" if span else ""
    rows = counted(result["reference_slices"], "training slice")
    found = f"have their nearest neighbour, among {rows}, in the right class"
    if classes_are_patients(result):
        found = f"have as their nearest neighbour, among {rows}, one of the same person"
    others = "".join(f", {CONTROLS[name]} {value:.1%}" for name, value in controls(result) if name != "raw_pixels")
    return (
        f"{result['knn_accuracy']:.1%} of {counted(result['slices'], 'unseen slice')}{whose} {found}{bounds}."
        f" Raw pixels alone reach {result['raw_pixel_knn']:.1%}{others}. Folds are split by {result['split_unit']}."
    )


def classes_are_patients(result: Mapping[str, Any]) -> bool:
    """Say whether each class is a person."""
    return result.get("label") == "person"


def controls(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the controls that a result holds, with their accuracies."""
    return [(name, result[key]) for name, key in CONTROL_KEYS.items() if result.get(key) is not None]


def remarks(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader must know before believing the figures; none where nothing stands against them."""
    yield from _against_the_closed_set(result) if classes_are_patients(result) else _against_the_split(result)
    yield from _against_the_intervals(result)
    yield from _against_the_accuracy(result)
    yield from _against_the_probabilities(result)


def _against_the_split(result: Mapping[str, Any]) -> Iterator[str]:
    if result["split_unit"] != "person":
        yield (
            f"The folds are split by {result['split_unit']}, not by person: slices of one person may stand in training"
            " and test, which flatters every figure here. Compare with the raw-pixel control only."
        )
    if result["shared_persons"]:
        yield f"{counted(result['shared_persons'], 'person')} of the test fold also occur in the training folds."
    if result["persons"] is None:
        yield "The data name no persons: whether somebody occurs in training and test cannot be told."


def _against_the_closed_set(result: Mapping[str, Any]) -> Iterator[str]:
    """Persons as classes are on both sides by intent: what flatters other verdicts is the question here."""
    yield (
        f"Each class is a person, and those tested are known from training: this is about telling"
        f" {len(result['classes']):,} persons apart in other slices of theirs, split by {result['split_unit']}. It says"
        " nothing of strangers, nor of a disease. Slices of one exam are alike: how far that leads, the controls show."
    )
    if result["left_out"]:
        yield f"Left out of the test fold: {counted(result['left_out'], 'slice')} of persons unknown to the training."
    yield (
        "Whoever has these weights and a picture of somebody can find out whether that person is in the training data:"
        " keep them as you keep the data."
    )


def _against_the_intervals(result: Mapping[str, Any]) -> Iterator[str]:
    spans = result["intervals"]
    unit = spans["interval_unit"]
    if unit != "person":
        yield f"The intervals are drawn by {unit}, not by person: they are narrower than they should be."
    if spans["units"] < _FEW_UNITS:
        few = counted(spans["units"], unit)
        yield f"Only {few} in the test fold: the intervals are rough and tend to be too narrow."


def _against_the_accuracy(result: Mapping[str, Any]) -> Iterator[str]:
    span, value = result["intervals"]["knn_accuracy"], result["knn_accuracy"]
    low, high = span or (value, value)
    for name, control in controls(result):
        what = CONTROLS[name]
        if low <= control:
            reaches = "its interval reaches down to" if span and high >= control else "it does not exceed"
            yield f"The k-NN accuracy does not clear the control: {reaches} what {what} give ({control:.1%})."
        elif value - control < _CLOSE:
            points = 100 * (value - control)
            yield (
                f"The control is close: {what}, without learning, come within {points:.1f} points of the k-NN accuracy."
            )
    floor = max((control for _, control in controls(result)), default=0.0)
    below = [one for name, one in _learnt(result).items() if name != "knn" and one["accuracy"] <= floor]
    if below:
        yield f"{len(below)} of {len(_learnt(result)) - 1} other classifiers do no better than the stronger control."


def _learnt(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: one for name, one in (result.get("methods") or {}).items() if name not in CONTROLS}


def _against_the_probabilities(result: Mapping[str, Any]) -> Iterator[str]:
    found = result.get("calibration")
    if found and found["expected_calibration_error"] >= POOR_CALIBRATION:
        points = 100 * found["expected_calibration_error"]
        excess = sum(one["count"] * (one["confidence"] - one["accuracy"]) for one in found["reliability"])
        tone = "too sure" if excess > 0 else "too cautious"
        yield (
            f"Poor calibration: the stated probabilities are {points:.1f} points off the share of right answers on"
            f" average, {tone} on the whole. Read them as an order, not as chances."
        )


def facts(result: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Return the header's short facts, (name, value)."""
    persons = "not named" if result["persons"] is None else f"{result['persons']:,}"
    return (
        ("split by", result["split_unit"]),
        ("test fold", str(result["fold"])),
        ("test persons", persons),
        ("test slices", f"{result['slices']:,}"),
        ("reference slices", f"{result['reference_slices']:,}"),
        ("classes", f"{len(result['classes']):,}{' persons' * classes_are_patients(result)}"),
        ("weights", f"step {result['checkpoint']['step']:,}, {result['chosen_by']}"),
    )


def share_text(share: float | None) -> str:
    """Return a share in percent; a dash where there is none."""
    return NONE if share is None else f"{share:.1%}"


def span_text(span: Sequence[float] | None) -> str:
    """Return an interval in percent."""
    return NONE if span is None else f"{span[0]:.1%} to {span[1]:.1%}"


def level_text(spans: Mapping[str, Any]) -> str:
    """Return the intervals' level in percent."""
    return f"{spans['level']:.0%}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
