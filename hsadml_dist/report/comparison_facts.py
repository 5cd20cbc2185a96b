"""Compute the facts that the comparison of several runs states. The sentences are in the templates.

All functions take ``combined.json`` as a dictionary, or one of its pools or comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hsadml_dist.report.formatting import interval_caution, is_generated, loss_title, thousands, unit_title
from hsadml_dist.report.page import render_paragraphs
from hsadml_dist.report.trained_facts import SLICES_MARK, trained_mark

SIGNIFICANT = 0.05
MAX_PAIRS = 2
"""Pairs of losses with a sentence of their own."""
_PAPERS_LOSS = "sphereface"

ComparisonDict = Mapping[str, Any]
PoolDict = Mapping[str, Any]


def headline(combined: Mapping[str, Any]) -> list[str]:
    """Return the main results: differences between losses, accuracies, and the effect of a leaky split."""
    facts = {
        "pairs": main_comparisons(combined)[:MAX_PAIRS],
        "pair_count": len(main_comparisons(combined)),
        "different": sum(conclusion(one) in ("better", "worse") for one in main_comparisons(combined)),
        "conclusion": conclusion,
        "p_of": deciding_p,
        "pools": strictest_pools(combined),
        "leak": _worst_leak(combined),
    }
    return render_paragraphs("comparison_headline.txt.j2", facts)


def remarks(combined: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before trusting the figures."""
    pools = combined["pools"]
    units = dict.fromkeys(pool["split_unit"] for pool in pools)
    spread = max(_seed_spread(pool) for pool in strictest_pools(combined))
    facts = {
        "combined": combined,
        "is_generated": any(map(is_generated, pools)),
        "patients_are_classes": combined.get("label") == "person",
        "strictest_unit": pools[0]["split_unit"],
        "leaky_units": [unit for unit in units if unit != "person"],
        "incomparable": len(units) > 1 and not any(one["kind"] == "splits" for one in combined["comparisons"]),
        "missing": list(_missing_folds(pools)),
        "weak_units": [unit for unit in dict.fromkeys(pool["unit"] for pool in pools) if unit != "person"],
        "caution": _smallest_caution(pools),
        "seeds": {tuple(pool["seeds"]) for pool in strictest_pools(combined)},
        "spread": spread,
        "close": [one for one in main_comparisons(combined) if spread and abs(one["test"]["difference"]) <= spread],
        "not_above_control": [
            one for one in combined["comparisons"] if one["kind"] == "control" and conclusion(one) != "better"
        ],
    }
    return render_paragraphs("comparison_remarks.txt.j2", facts)


def _smallest_caution(pools: Sequence[PoolDict]) -> str | None:
    smallest = min(pools, key=lambda pool: pool["units"])
    return interval_caution(smallest["caution"], smallest["units"], smallest["unit"])


def main_comparisons(combined: Mapping[str, Any]) -> list[ComparisonDict]:
    """Return the comparisons of losses by k-NN under the strictest split, those with softmax and SphereFace first."""
    pool = combined["pools"][0]
    found = [
        one
        for one in combined["comparisons"]
        if one["kind"] == "losses" and one["first"]["method"] == "knn" and _shards(one["first"]) == _shards(pool)
    ]
    return sorted(found, key=lambda one: (one["second"]["loss"] != "softmax", one["first"]["loss"] != _PAPERS_LOSS))


def strictest_pools(combined: Mapping[str, Any]) -> list[PoolDict]:
    """Return the pools of the strictest split on the first shards; pools are sorted by split."""
    return [pool for pool in combined["pools"] if _shards(pool) == _shards(combined["pools"][0])]


def conclusion(comparison: ComparisonDict) -> str:
    """Return what a comparison shows about its first side.

    ``better`` or ``worse`` if the test is significant and the interval excludes 0, ``unclear`` if only one of them
    holds, ``no_difference`` if neither.
    """
    test = comparison["test"]
    interval, significant = test["interval"], deciding_p(comparison) < SIGNIFICANT
    excludes_zero = interval is not None and (interval[0] > 0 or interval[1] < 0)
    if significant and excludes_zero:
        return "better" if test["difference"] > 0 else "worse"
    return "unclear" if significant or excludes_zero else "no_difference"


def deciding_p(comparison: ComparisonDict) -> float:
    """Return the permutation p, corrected for the number of pairs where that applies."""
    adjusted = comparison["adjusted_p"]
    return comparison["test"]["permutation"]["p"] if adjusted is None else adjusted


def shards_title(combined: Mapping[str, Any], side: Mapping[str, Any]) -> str:
    """Return the split unit of a pool or side, with the start of its digest if two shards share the unit."""
    digests = {pool["data_digest"] for pool in combined["pools"] if pool["split_unit"] == side["split_unit"]}
    unit = unit_title(side["split_unit"])
    return f"{unit} ({side['data_digest'][:8]})" if len(digests) > 1 else unit


def pool_mark(combined: Mapping[str, Any], pool: PoolDict) -> str:
    """Return the mark of a pool's figures if they include trained slices or patients; empty without them."""
    return trained_mark({**pool, "label": combined.get("label")})


def page_mark(combined: Mapping[str, Any]) -> str:
    """Return the mark of every figure and table of the page; empty unless a pool includes trained slices."""
    return SLICES_MARK if any(pool.get("trained_slices") for pool in combined["pools"]) else ""


def header(combined: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the short facts of the page's header as (name, value)."""
    pools = strictest_pools(combined)
    patients = [pool["persons"] for pool in pools]
    return [
        ("runs", thousands(len(combined["sources"]))),
        ("losses", ", ".join(dict.fromkeys(loss_title(pool["loss"]) for pool in combined["pools"]))),
        ("split by", ", ".join(dict.fromkeys(unit_title(pool["split_unit"]) for pool in combined["pools"]))),
        ("patients", thousands(None if None in patients else max(patients))),
        ("slices", thousands(max(pool["slices"] for pool in pools))),
        ("read in training", ", ".join(dict.fromkeys(_trained_title(pool) for pool in combined["pools"]))),
        ("seeds", thousands(len({seed for pool in combined["pools"] for seed in pool["seeds"]}))),
        ("classes", thousands(len(combined["classes"]))),
        ("network", combined["model"]),
    ]


def _trained_title(pool: PoolDict) -> str:
    slices = pool.get("trained_slices")
    return "unknown" if slices is None else f"{slices:,} slices of a test fold"


def _shards(side: Mapping[str, Any]) -> tuple[str, str]:
    return side["split_unit"], side["data_digest"]


def _worst_leak(combined: Mapping[str, Any]) -> ComparisonDict | None:
    """Return the comparison of the leakiest split with the split by patient, of SphereFace if it is there."""
    found = [
        (one["first"]["split_unit"] != "slice", one["first"]["loss"] != _PAPERS_LOSS, number)
        for number, one in enumerate(combined["comparisons"])
        if one["kind"] == "splits" and one["first"]["method"] == "knn" and one["second"]["split_unit"] == "person"
    ]
    return combined["comparisons"][min(found)[-1]] if found else None


def _seed_spread(pool: PoolDict) -> float:
    """Return the range of accuracies of the seeds that were evaluated on the same slices."""
    most = max(part["slices"] for part in pool["by_seed"])
    accuracies = [part["accuracy"] for part in pool["by_seed"] if part["slices"] == most]
    return max(accuracies) - min(accuracies)


def _missing_folds(pools: Sequence[PoolDict]) -> Iterator[dict[str, Any]]:
    """Yield the missing folds and seeds with the losses that lack them; losses of one split are grouped."""
    losses: dict[tuple[Any, ...], list[str]] = {}
    for pool in pools:
        folds = tuple(dict.fromkeys(fold for _, fold in pool["missing"]))
        seeds = tuple(dict.fromkeys(seed for seed, _ in pool["missing"])) if len(pool["seeds"]) > 1 else ()
        if folds:
            key = (folds, seeds, len(pool["expected_folds"]), pool["split_unit"])
            losses.setdefault(key, []).append(loss_title(pool["loss"]))
    for (folds, seeds, expected, unit), names in losses.items():
        yield {"folds": folds, "seeds": seeds, "expected": expected, "unit": unit_title(unit), "losses": names}
