"""The vote by person."""

from __future__ import annotations

import pytest

from hsadml_dist.report.accuracy_sections import PatientVotes, vote_interval, votes_section
from tests.report.report_samples import full_result_of, wilson


@pytest.mark.parametrize(("right", "cases", "ties"), [(35, 40, 2), (0, 7, 0), (9, 9, 0), (29, 31, 1)])
def test_votes_are_counted_back(right: int, cases: int, ties: int) -> None:
    votes = PatientVotes.of({"accuracy": right / cases, "cases": cases, "persons": cases, "ties": ties})
    assert (votes.right, votes.undecided, votes.wrong) == (right, ties, cases - right - ties)


@pytest.mark.parametrize(("right", "cases"), [(35, 40), (0, 7), (9, 9), (1, 1)])
def test_the_interval_holds_the_shares_that_are_not_too_far(right: int, cases: int) -> None:
    result = full_result_of()
    result["person_vote"] = {"accuracy": right / cases, "cases": cases, "persons": cases, "ties": 0}
    assert vote_interval(result) == pytest.approx(wilson(right / cases, cases), abs=2e-5)


def test_who_counts_twice_is_said() -> None:
    result = full_result_of()
    assert "counts once for each" not in votes_section(result).text
    result["person_vote"]["persons"] = 38
    assert "38 persons make 40 cases" in votes_section(result).text
