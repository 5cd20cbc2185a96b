"""What is claimed, and that it is claimed only where test and interval agree."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hsadml_dist.evaluation.combine import combine
from hsadml_dist.report.comparison_facts import conclusion, headline, p_number, points, remarks
from tests.evaluation.synthetic_evaluations import Study


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    study = Study(lead={"softmax": 0.0, "sphereface": 0.1})
    return combine(list(study.all({"person": 5, "slice": 5})), resamples=200).to_dict()


def changed(found: dict[str, Any], difference: float, span: list[float] | None, p: float) -> dict[str, Any]:
    """The same comparison of losses with other numbers."""
    new = copy.deepcopy(found)
    for one in new["comparisons"]:
        if one["kind"] == "losses" and one["first"]["split_unit"] == "person":
            one["test"] |= {"difference": difference, "interval": span}
            one["test"]["permutation"]["p"] = one["adjusted_p"] = p
    return new


@pytest.mark.parametrize(
    ("difference", "span", "p", "claim"),
    [
        (0.012, [-0.008, 0.031], 0.24, "no difference is shown"),
        (0.05, [0.02, 0.08], 0.001, "these SphereFace weights are better"),
        (-0.05, [-0.08, -0.02], 0.001, "these SphereFace weights are worse"),
        (0.02, [0.001, 0.04], 0.06, "disagree, so that no difference is shown"),
        (0.02, [-0.001, 0.04], 0.04, "disagree, so that no difference is shown"),
        (0.5, None, 0.5, "no difference is shown"),
    ],
)
def test_a_lead_is_claimed_only_where_test_and_interval_agree(
    found: dict[str, Any], difference: float, span: list[float] | None, p: float, claim: str
) -> None:
    assert claim in headline(changed(found, difference, span, p))[0]


def test_the_first_sentence_says_it_all(found: dict[str, Any]) -> None:
    slices = found["pools"][0]["slices"]
    assert headline(changed(found, 0.012, [-0.008, 0.031], 0.24))[0].replace("\N{NO-BREAK SPACE}", " ") == (
        "SphereFace against softmax, split by person: +1.2 points (95% interval \N{MINUS SIGN}0.8 to +3.1),"
        f" p = .24 by permutation of persons: no difference is shown on {slices} slices of 40 persons."
    )


def test_figures_control_and_leak_follow(found: dict[str, Any]) -> None:
    _, figures, leak = headline(found)
    raw = found["pools"][0]["methods"]["raw_pixels"]["accuracy"]
    assert figures.endswith(f"raw pixels alone, nothing learnt, {raw:.1%}.")
    assert "folds split by slice, SphereFace has" in leak and "of the same slices: +" in leak


def test_three_losses_lead_with_the_papers_pair() -> None:
    study = Study(lead={"softmax": 0.0, "cosface": 0.4, "sphereface": 0.8})
    sentences = headline(combine(list(study.all({"person": 5})), resamples=100).to_dict())
    assert sentences[0].startswith("SphereFace against softmax")
    assert sentences[1].startswith("CosFace against softmax")
    assert sentences[2].startswith("Of all 3 pairs of losses, ")


def test_a_sound_comparison_has_its_one_caution(found: dict[str, Any]) -> None:
    strict = found | {"pools": found["pools"][:2], "comparisons": found["comparisons"][:1]}
    assert [remark[:27] for remark in remarks(strict)] == ["One training a loss and fol"]


def spoilt(found: dict[str, Any], **values: Any) -> dict[str, Any]:
    new = copy.deepcopy(found)
    new["pools"][0] |= values
    return new


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"missing": [[0, 3], [0, 4]]}, "Not judged: folds 3, 4 of 5 under the split by person (SphereFace)."),
        ({"missing": [[1, 3]], "seeds": [0, 1]}, "fold 3 of 5 under the split by person, seed 1 (SphereFace)"),
        ({"seeds": [0, 1]}, "not trained with the same seeds"),
        ({"shared_persons": 2}, "2 persons of a test fold also occur in its training folds"),
        ({"units": 9}, "Only 9 persons in places"),
        ({"unit": "slice"}, "Some slices name no person: intervals and tests go by slice"),
    ],
)
def test_what_stands_against_the_figures_is_said(found: dict[str, Any], values: dict[str, Any], words: str) -> None:
    assert not [remark for remark in remarks(found) if words in remark]
    assert [remark for remark in remarks(spoilt(found, **values)) if words in remark]


def test_more_of_what_stands_against_them(found: dict[str, Any]) -> None:
    def said(new: dict[str, Any]) -> str:
        return " ".join(remarks(new))

    assert "No run is split by person" in said(found | {"pools": found["pools"][2:]})
    alone = found | {"comparisons": [one for one in found["comparisons"] if one["kind"] != "splits"]}
    assert "figures are not comparable" in said(alone) and "not comparable" not in said(found)
    differing = {"optim.lr": {"0.1": ["a"], "0.01": ["b", "c"]}}
    assert "optim.lr too (0.1 in 1 run; 0.01 in 2 runs)" in said(found | {"differing": differing})
    assert "Not all runs have random forest" in said(found | {"left_out": ["random_forest"]})
    perfect = copy.deepcopy(found)
    perfect["pools"][1]["methods"]["knn"]["accuracy"] = 1.0
    assert "softmax, split by person: not one slice is wrong" in said(perfect)
    behind = copy.deepcopy(found)
    for one in behind["comparisons"]:
        if one["kind"] == "control":
            one["test"]["permutation"]["p"] = 0.2
    assert "Not shown to be better than raw pixels, which learn nothing: SphereFace split by person" in said(behind)
    spread = copy.deepcopy(changed(found, 0.01, [-0.01, 0.03], 0.4))
    for pool in spread["pools"]:
        pool["by_seed"] = [pool["by_seed"][0] | {"accuracy": accuracy} for accuracy in (0.7, 0.75)]
    assert "up to 5.0 points apart: no less than SphereFace and softmax" in said(spread)


def test_persons_as_classes_are_in_both_sides_by_intent(found: dict[str, Any]) -> None:
    said = list(remarks(found | {"label": "person"}))
    assert [remark for remark in said if "Each class is a person whom training knows" in remark]
    assert not [remark for remark in said if "slices of one person" in remark]


def test_numbers_are_written_as_papers_write_them() -> None:
    assert [p_number(p) for p in (1.0, 0.24, 0.0849, 0.00099, 0.001)] == ["1", ".24", ".085", "< .001", ".001"]
    assert [points(share) for share in (0.012, -0.008, 0.0001, -0.0001)] == ["+1.2", "\N{MINUS SIGN}0.8", "0.0", "0.0"]
    one = {"difference": 0.1, "interval": [0.05, 0.2]}
    assert (conclusion(one, 0.01), conclusion(one, 0.2)) == ("better", "unclear")
