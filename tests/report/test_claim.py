"""The checklist: complete, and honest about who can answer."""

from __future__ import annotations

from hsadml_dist.report.claim import AUTHOR, PART, RUN, TO_FILL, claim_tables
from tests.report.report_samples import VERSIONS, cases_of, full_result_of, result_of


def rows(result: dict, cases: list = (), versions: dict = VERSIONS) -> dict[int, tuple[str, str]]:
    tables = claim_tables(result, cases, versions)
    return {int(number): (who, answer) for table in tables for number, _, who, answer in table.rows}


def test_all_items_are_there_in_order() -> None:
    assert list(rows(result_of())) == list(range(1, 45))


def test_who_answers_is_what_the_answer_says() -> None:
    for who, answer in rows(full_result_of(), cases_of(), VERSIONS).values():
        assert who in (RUN, PART, AUTHOR)
        if who == RUN:
            assert TO_FILL not in answer and len(answer) > 10
        if who == AUTHOR:
            assert answer.endswith((TO_FILL, f"{TO_FILL}."))


def test_the_run_fills_in_what_it_knows() -> None:
    filled = rows(full_result_of(), cases_of(), VERSIONS)
    assert "112 x 112 pixels" in filled[9][1]
    assert filled[20][1] == "Split by person; persons on both sides: 0."
    assert "embeddings of 64 components, 3 class centres" in filled[22][1]
    assert filled[23][1] == "Python 3.11.7, torch 2.13.0"
    assert "sphereface, seed 0" in filled[25][1] and "loss.margin 4" in filled[25][1]
    assert filled[29][1] == "95% percentile bootstrap over 40 persons, 2,000 samples."
    assert "<class 0> 10" in filled[36][1]
    for part in ("81.2% (73.1% to 88.3%)", "79.8% (70.1% to 87.1%)", "raw pixels 68.8%", "low level 65.2%"):
        assert part in filled[37][1]
    assert "By person 87.5%" in filled[38][1]
    assert "2 wrong cases shown" in filled[39][1]


def test_what_is_not_known_is_not_claimed() -> None:
    bare = rows(result_of() | {"persons": None, "shared_persons": None, "confusion": None}, versions={})
    assert "not known" in bare[20][1]
    assert "persons not named" in bare[32][1]
    assert bare[23][1] == "not recorded"
    assert "By person" not in bare[38][1] and "shown" not in bare[39][1]
