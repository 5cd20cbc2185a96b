"""The CLAIM checklist: complete, and clear about who can answer."""

from __future__ import annotations

from typing import Any

from hsadml_dist.report.run_report import render_run_report
from tests.report.report_samples import VERSIONS, ParsedPage, cases_of, full_result_of, result_of

RUN, PART, AUTHOR = "run", "in part", "author"
FOR_AUTHOR = "for the author"


def checklist(result: dict[str, Any], cases: list[Any] | None = None, versions: Any = None) -> dict[int, list[str]]:
    page = ParsedPage(render_run_report("run", result, [], None, cases or [], versions))
    rows = [row for row in page.rows if len(row) == 4 and row[2] in (RUN, PART, AUTHOR)]
    return {int(number): [by, answer] for number, _, by, answer in rows}


def test_claim_items_are_complete_and_in_order() -> None:
    assert list(checklist(result_of())) == list(range(1, 45))


def test_claim_items_of_the_run_are_answered_and_others_left_to_the_author() -> None:
    for by, answer in checklist(full_result_of(), cases_of(), VERSIONS).values():
        if by == RUN:
            assert FOR_AUTHOR not in answer and len(answer) > 10
        if by == AUTHOR:
            assert answer.rstrip(".").endswith(FOR_AUTHOR)


def test_claim_answers_hold_the_facts_of_the_run() -> None:
    answers = {number: answer for number, (_, answer) in checklist(full_result_of(), cases_of(), VERSIONS).items()}
    facts = {
        9: ["112 x 112"],
        20: ["patient", "0"],
        22: ["64 dimensions", "3 class centres"],
        23: ["Python 3.11.7, torch 2.13.0"],
        25: ["sphereface", "seed 0", "loss.margin 4"],
        29: ["95%", "40 patients", "jackknife"],
        36: ["<class 0> 10"],
        37: ["81.2% (73.1% to 88.3%)", "79.8% (70.1% to 87.1%)", "raw pixels 68.8%", "low-level features 65.2%"],
        38: ["87.5% (73.9% to 94.5%)"],
        39: ["2 incorrect"],
    }
    for number, parts in facts.items():
        for part in parts:
            assert part in answers[number], (number, part)


def test_claim_answers_do_not_claim_what_is_unknown() -> None:
    bare = result_of() | {"persons": None, "shared_persons": None, "confusion": None}
    answers = {number: answer for number, (_, answer) in checklist(bare).items()}
    assert "not known" in answers[20]
    assert "unknown" in answers[32]
    assert answers[23] == "not recorded"
    assert "%" not in answers[38] and "shown" not in answers[39]
