"""Conclusions and remarks of a comparison: a difference is stated only if test and interval agree."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hsadml_dist.evaluation.combine import combine
from hsadml_dist.report.comparison_facts import conclusion, headline, main_comparisons, remarks, shards_title
from tests.evaluation.synthetic_evaluations import Study


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    study = Study(lead={"softmax": 0.0, "sphereface": 0.1})
    return combine(list(study.all({"person": 5, "slice": 5}))).to_dict()


def with_test(found: dict[str, Any], difference: float, interval: list[float] | None, p: float) -> dict[str, Any]:
    """Return the comparison with other numbers for the two losses under the split by patient."""
    new = copy.deepcopy(found)
    for one in new["comparisons"]:
        if one["kind"] == "losses" and one["first"]["split_unit"] == "person":
            one["test"] |= {"difference": difference, "interval": interval}
            one["test"]["permutation"]["p"] = one["adjusted_p"] = p
    return new


def with_pool(found: dict[str, Any], **values: Any) -> dict[str, Any]:
    new = copy.deepcopy(found)
    new["pools"][0] |= values
    return new


def new_remarks(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the remarks that only ``after`` has."""
    return " ".join(remark for remark in remarks(after) if remark not in remarks(before))


@pytest.mark.parametrize(
    ("difference", "interval", "p", "expected"),
    [
        (0.012, [-0.008, 0.031], 0.24, "no_difference"),
        (0.05, [0.02, 0.08], 0.001, "better"),
        (-0.05, [-0.08, -0.02], 0.001, "worse"),
        (0.02, [0.001, 0.04], 0.06, "unclear"),
        (0.02, [-0.001, 0.04], 0.04, "unclear"),
        (0.5, None, 0.5, "no_difference"),
    ],
)
def test_conclusion_needs_test_and_interval_to_agree(
    found: dict[str, Any], difference: float, interval: list[float] | None, p: float, expected: str
) -> None:
    new = with_test(found, difference, interval, p)
    assert conclusion(main_comparisons(new)[0]) == expected
    claims = ("weights are better" in headline(new)[0], "weights are worse" in headline(new)[0])
    assert claims == (expected == "better", expected == "worse")


def test_headline_starts_with_the_difference_its_interval_and_p(found: dict[str, Any]) -> None:
    first = headline(with_test(found, 0.012, [-0.008, 0.031], 0.24))[0].replace("\N{NO-BREAK SPACE}", " ")
    slices = found["pools"][0]["slices"]
    for part in (
        "SphereFace against softmax",
        "split by patient",
        "+1.2 points",
        "95% interval \N{MINUS SIGN}0.8 to +3.1",
        "p = .24",
        f"{slices} slices of 40 patients",
    ):
        assert part in first, part


def test_headline_continues_with_accuracies_and_the_leak(found: dict[str, Any]) -> None:
    _, accuracies, leak = headline(found)
    methods = found["pools"][0]["methods"]
    assert (
        f"{methods['knn']['accuracy']:.1%}" in accuracies and f"{methods['raw_pixels']['accuracy']:.1%}" in accuracies
    )
    assert "split by slice" in leak and "SphereFace" in leak


def test_headline_of_three_losses_puts_softmax_pairs_first() -> None:
    study = Study(lead={"softmax": 0.0, "cosface": 0.4, "sphereface": 0.8})
    sentences = headline(combine(list(study.all({"person": 5}))).to_dict())
    assert sentences[0].startswith("SphereFace against softmax")
    assert sentences[1].startswith("CosFace against softmax")
    assert "3 pairs" in sentences[2]


def test_remarks_of_sound_comparison_name_the_single_seed_only(found: dict[str, Any]) -> None:
    strict = found | {"pools": found["pools"][:2], "comparisons": found["comparisons"][:1]}
    (remark,) = remarks(strict)
    assert "one training per loss and fold" in remark


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"missing": [[0, 3], [0, 4]]}, ("folds 3, 4 of 5", "split by patient (SphereFace)")),
        ({"missing": [[1, 3]], "seeds": [0, 1]}, ("fold 3 of 5", "seed 1 (SphereFace)")),
        ({"seeds": [0, 1]}, ("same seeds",)),
        ({"shared_persons": 2}, ("SphereFace: 2 patients",)),
        ({"units": 9, "caution": "few_units"}, ("9 patients",)),
        ({"unit": "slice"}, ("slice", "patient id")),
    ],
)
def test_remarks_name_each_weakness_of_a_pool(
    found: dict[str, Any], values: dict[str, Any], facts: tuple[str, ...]
) -> None:
    new = new_remarks(found, with_pool(found, **values))
    for fact in facts:
        assert fact in new, fact


def test_remarks_name_missing_patient_split_and_incomparable_splits(found: dict[str, Any]) -> None:
    assert "split by patient" in new_remarks(found, found | {"pools": found["pools"][2:]})
    alone = found | {"comparisons": [one for one in found["comparisons"] if one["kind"] != "splits"]}
    assert "not comparable" in new_remarks(found, alone)


def test_remarks_name_differing_settings_and_missing_methods(found: dict[str, Any]) -> None:
    differing = found | {"differing": {"optim.lr": {"0.1": ["a"], "0.01": ["b", "c"]}}}
    assert "optim.lr (0.1 in 1 run; 0.01 in 2 runs)" in new_remarks(found, differing)
    assert "random forest" in new_remarks(found, found | {"left_out": ["random_forest"]})


def test_remarks_name_losses_not_above_the_control(found: dict[str, Any]) -> None:
    behind = copy.deepcopy(found)
    for one in behind["comparisons"]:
        if one["kind"] == "control":
            one["test"]["permutation"]["p"] = 0.2
    assert "SphereFace split by patient" in new_remarks(found, behind)


def test_remarks_compare_the_spread_of_seeds_with_the_difference(found: dict[str, Any]) -> None:
    spread = with_test(found, 0.01, [-0.01, 0.03], 0.4)
    for pool in spread["pools"]:
        pool["by_seed"] = [pool["by_seed"][0] | {"accuracy": accuracy} for accuracy in (0.7, 0.75)]
    new = new_remarks(found, spread)
    assert "5.0 points" in new and "SphereFace and softmax" in new


def test_remarks_on_patients_as_classes_replace_those_on_the_split(found: dict[str, Any]) -> None:
    new = found | {"label": "person"}
    assert "known from training" in new_remarks(found, new)
    assert not [remark for remark in remarks(new) if "controls" in remark]


def test_shards_title_adds_the_digest_of_two_shards_with_one_unit(found: dict[str, Any]) -> None:
    first = found["pools"][0]
    assert shards_title(found, first) == "patient"
    other = first | {"data_digest": "0" * 64}
    assert shards_title(found | {"pools": [first, other]}, other) == "patient (00000000)"
