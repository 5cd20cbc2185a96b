"""What the page on several runs says in words: who is ahead, by how much, and what stands against it. Pure text.

All functions take ``combined.json`` as a dictionary, or one of its pools or comparisons.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hsadml_dist.report.accuracy_sections import method_title as method_title
from hsadml_dist.report.formatting import NONE, counted, span_text

LOSSES = {"softmax": "softmax", "sphereface": "SphereFace", "cosface": "CosFace"}
"""Losses as their papers write them."""
SIGNIFICANT = 0.05
_FEW_UNITS = 20
_MOST_SENTENCES = 2
_PAPERS_LOSS = "sphereface"


def loss_title(loss: str) -> str:
    """Return a loss's name as its paper writes it."""
    return LOSSES.get(loss, loss)


def headline(combined: Mapping[str, Any]) -> list[str]:
    """Return what the page says first: the losses against each other, their figures, and what the split adds."""
    pairs = main_comparisons(combined)
    sentences = [_verdict(one) for one in pairs[:_MOST_SENTENCES]]
    if len(pairs) > _MOST_SENTENCES:
        apart = sum(conclusion(one["test"], _p(one)) in ("better", "worse") for one in pairs)
        sentences.append(f"Of all {len(pairs)} pairs of losses, {apart} differ; see the table of differences.")
    return [*sentences, _figures(strictest_pools(combined)), *map(_leak, _worst_leak(combined))]


def main_comparisons(combined: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the comparisons of losses by nearest neighbour under the strictest split, the paper's own pair first."""
    pools = strictest_pools(combined)
    where = (pools[0]["split_unit"], pools[0]["data_digest"])
    found = [
        one
        for one in combined["comparisons"]
        if one["kind"] == "losses"
        and one["first"]["method"] == "knn"
        and (one["first"]["split_unit"], one["first"]["data_digest"]) == where
    ]
    return sorted(found, key=lambda one: (one["second"]["loss"] != "softmax", one["first"]["loss"] != _PAPERS_LOSS))


def strictest_pools(combined: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the pools of the first, strictest split on the first shards."""
    first = combined["pools"][0]
    where = (first["split_unit"], first["data_digest"])
    return [pool for pool in combined["pools"] if (pool["split_unit"], pool["data_digest"]) == where]


def conclusion(test: Mapping[str, Any], p: float) -> str:
    """Return what a comparison shows: ``better``, ``worse``, ``no difference shown`` or ``unclear``."""
    span = test["interval"]
    apart = span is not None and (span[0] > 0 or span[1] < 0)
    if p < SIGNIFICANT and apart:
        return "better" if test["difference"] > 0 else "worse"
    return "unclear" if p < SIGNIFICANT or apart else "no difference shown"


def remarks(combined: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader must know before believing the figures."""
    yield from _against_the_splits(combined)
    yield from _against_the_whole(combined)
    yield from _against_the_intervals(combined)
    yield from _against_the_seeds(combined)
    yield from _against_the_control(combined)
    for key, values in combined["differing"].items():
        each = "; ".join(f"{value} in {counted(len(runs), 'run')}" for value, runs in values.items())
        yield f"The runs differ in {key} too ({each}): a difference may come from there and not from the loss."
    if combined["left_out"]:
        names = ", ".join(method_title(method) for method in combined["left_out"])
        yield f"Not all runs have {names}: left out where a run lacks it."


def facts(combined: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Return the header's short facts, (name, value)."""
    pools = strictest_pools(combined)
    persons = {pool["persons"] for pool in pools}
    known = NONE if None in persons else f"{max(persons):,}"
    units = dict.fromkeys(pool["split_unit"] for pool in combined["pools"])
    return (
        ("runs", f"{len(combined['sources']):,}"),
        ("losses", ", ".join(dict.fromkeys(loss_title(pool["loss"]) for pool in combined["pools"]))),
        ("split by", ", ".join(units)),
        ("persons", known),
        ("slices", f"{max(pool['slices'] for pool in pools):,}"),
        ("seeds", str(len({seed for pool in combined["pools"] for seed in pool["seeds"]}))),
        ("classes", f"{len(combined['classes']):,}"),
        ("network", combined["model"]),
    )


def points(share: float) -> str:
    """Return a difference of shares in percentage points, signed."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def points_span(span: Sequence[float] | None) -> str:
    """Return an interval of a difference in percentage points."""
    return NONE if span is None else f"{points(span[0])} to {points(span[1])}"


def p_number(p: float) -> str:
    """Return a p without its leading zero; small ones as a bound."""
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".lstrip("0") if p < 0.1 else "1" if p > 0.995 else f"{p:.2f}".lstrip("0")


def p_text(p: float) -> str:
    """Return ``p = .24`` or ``p < .001``."""
    number = p_number(p)
    text = f"p {number}" if number.startswith("<") else f"p = {number}"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def side_title(side: Mapping[str, Any]) -> str:
    """Return a side of a comparison of losses or with the control."""
    return method_title(side["method"]) if side["method"] == "raw_pixels" else loss_title(side["loss"])


def shards_title(combined: Mapping[str, Any], side: Mapping[str, Any]) -> str:
    """Return the split unit of a pool or side, with the start of its digest where two shards share the unit."""
    unit, digest = side["split_unit"], side["data_digest"]
    digests = {pool["data_digest"] for pool in combined["pools"] if pool["split_unit"] == unit}
    return f"{unit} ({digest[:8]})" if len(digests) > 1 else unit


def _p(one: Mapping[str, Any]) -> float:
    return one["test"]["permutation"]["p"] if one["adjusted_p"] is None else one["adjusted_p"]


def _verdict(one: Mapping[str, Any]) -> str:
    test, first, second = one["test"], loss_title(one["first"]["loss"]), loss_title(one["second"]["loss"])
    found = conclusion(test, _p(one))
    says = {
        "better": f"these {first} weights are better",
        "worse": f"these {first} weights are worse",
        "unclear": "the test and the interval disagree, so that no difference is shown",
        "no difference shown": "no difference is shown",
    }[found]
    corrected = ", corrected for the number of pairs" if _p(one) != test["permutation"]["p"] else ""
    bounds = f" ({_level(test)} interval {points_span(test['interval'])})" if test["interval"] else ""
    whose = counted(test["units"], test["unit"])
    on = f"{counted(test['slices'], 'slice')} of {whose}" if test["unit"] != "slice" else whose
    return (
        f"{first} against {second}, split by {one['first']['split_unit']}: {points(test['difference'])}"
        f" points{bounds}, {p_text(_p(one))} by permutation of {test['unit']}s{corrected}: {says} on {on}."
    )


def _figures(pools: Sequence[Mapping[str, Any]]) -> str:
    each = [
        f"{loss_title(pool['loss'])} {pool['methods']['knn']['accuracy']:.1%}"
        f" ({span_text(pool['methods']['knn']['interval'])})"
        for pool in pools
    ]
    controls = [pool["methods"]["raw_pixels"]["accuracy"] for pool in pools if "raw_pixels" in pool["methods"]]
    raw = dict.fromkeys(f"{value:.1%}" for value in sorted(controls))
    alone = f"; raw pixels alone, nothing learnt, {' to '.join(raw)}" if raw else ""
    return f"Unseen slices whose nearest neighbour is in the right class: {', '.join(each)}{alone}."


def _worst_leak(combined: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the comparison of the leakiest split with that by person, of the paper's loss where it is there."""
    found = [
        one
        for one in combined["comparisons"]
        if one["kind"] == "splits" and one["first"]["method"] == "knn" and one["second"]["split_unit"] == "person"
    ]
    return sorted(found, key=lambda one: (one["first"]["split_unit"] != "slice", one["first"]["loss"] != _PAPERS_LOSS))[
        :1
    ]


def _leak(one: Mapping[str, Any]) -> str:
    test, unit = one["test"], one["first"]["split_unit"]
    bounds = f" ({points_span(test['interval'])})" if test["interval"] else ""
    return (
        f"What a leaky split adds: trained with folds split by {unit}, {loss_title(one['first']['loss'])} has"
        f" {test['accuracy_first']:.1%} of {counted(test['slices'], 'slice')} right; split by person it has"
        f" {test['accuracy_second']:.1%} of the same slices: {points(test['difference'])} points{bounds}."
    )


def _against_the_splits(combined: Mapping[str, Any]) -> Iterator[str]:
    strict = combined["pools"][0]["split_unit"]
    if combined.get("label") == "person":
        yield "Each class is a person whom training knows: the figures say nothing of strangers, nor of a disease."
        return
    if strict != "person":
        yield (
            f"No run is split by person. Folds split by {strict} hold slices of one person in training and test, which"
            " flatters every figure here."
        )
    leaky = dict.fromkeys(pool["split_unit"] for pool in combined["pools"] if pool["split_unit"] != "person")
    if strict == "person" and leaky:
        yield (
            f"Figures split by {' or '.join(leaky)} are controls: slices of one person stand in training and test. They"
            " say nothing of persons that a network has not seen."
        )
    for pool in combined["pools"]:
        if pool["split_unit"] == "person" and pool["shared_persons"]:
            whose = counted(pool["shared_persons"], "person")
            yield f"{loss_title(pool['loss'])}: {whose} of a test fold also occur in its training folds."
    units = {pool["split_unit"] for pool in combined["pools"]}
    if len(units) > 1 and not any(one["kind"] == "splits" for one in combined["comparisons"]):
        yield "The splits share no slice that one loss has judged under both: their figures are not comparable."


def _against_the_whole(combined: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is missing; pools of one split that miss the same are named together."""
    lacking: dict[str, list[str]] = {}
    for pool in combined["pools"]:
        folds = dict.fromkeys(fold for _, fold in pool["missing"])
        if folds:
            seeds = dict.fromkeys(seed for seed, _ in pool["missing"])
            which = f", {_numbered('seed', seeds)}" if len(pool["seeds"]) > 1 else ""
            of = len(pool["expected_folds"])
            text = f"{_numbered('fold', folds)} of {of} under the split by {pool['split_unit']}{which}"
            lacking.setdefault(text, []).append(loss_title(pool["loss"]))
    for text, losses in lacking.items():
        yield f"Not judged: {text} ({', '.join(losses)})."


def _numbered(noun: str, numbers: Collection[int]) -> str:
    return f"{noun}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def _against_the_intervals(combined: Mapping[str, Any]) -> Iterator[str]:
    units = dict.fromkeys(pool["unit"] for pool in combined["pools"] if pool["unit"] != "person")
    for unit in units:
        yield f"Some slices name no person: intervals and tests go by {unit} and are too sure of themselves."
    few = [pool for pool in combined["pools"] if pool["units"] < _FEW_UNITS]
    if few:
        least = min(few, key=lambda pool: pool["units"])
        yield f"Only {counted(least['units'], least['unit'])} in places: intervals are rough and tend to be too narrow."
    for pool in combined["pools"]:
        if pool["methods"]["knn"]["accuracy"] == 1.0:
            which = f"{loss_title(pool['loss'])}, split by {pool['split_unit']}"
            yield f"{which}: not one slice is wrong, so that the bootstrap interval has no width; that is no certainty."


def _against_the_seeds(combined: Mapping[str, Any]) -> Iterator[str]:
    pools = strictest_pools(combined)
    if len({tuple(pool["seeds"]) for pool in pools}) > 1:
        yield "The losses were not trained with the same seeds."
    if all(len(pool["seeds"]) == 1 for pool in pools):
        yield (
            "One training a loss and fold. The intervals cover the choice of persons, not that of a seed: another seed"
            " can move a figure by points of its own."
        )
    spread = max(_spread(pool) for pool in pools)
    close = [
        f"{loss_title(one['first']['loss'])} and {loss_title(one['second']['loss'])}"
        for one in main_comparisons(combined)
        if abs(one["test"]["difference"]) <= spread
    ]
    if spread and close:
        yield f"Seeds of one loss are up to {100 * spread:.1f} points apart: no less than {', '.join(close)}."


def _spread(pool: Mapping[str, Any]) -> float:
    """Return how far seeds that judged the same slices are apart."""
    most = max(part["slices"] for part in pool["by_seed"])
    whole = [part["accuracy"] for part in pool["by_seed"] if part["slices"] == most]
    return max(whole) - min(whole)


def _against_the_control(combined: Mapping[str, Any]) -> Iterator[str]:
    behind = [
        f"{loss_title(one['first']['loss'])} split by {one['first']['split_unit']}"
        for one in combined["comparisons"]
        if one["kind"] == "control" and conclusion(one["test"], _p(one)) != "better"
    ]
    if behind:
        yield f"Not shown to be better than raw pixels, which learn nothing: {', '.join(behind)}."


def _level(test: Mapping[str, Any]) -> str:
    return f"{test['level']:.0%}"
