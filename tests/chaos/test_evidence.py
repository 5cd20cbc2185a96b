"""Made-up evidence: every check accepts what is right and finds what is wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.chaos.evidence import (
    AttemptRecord,
    BaselineResult,
    Fault,
    allowed_loss,
    as_document,
    clear_error_problems,
    decide_outcome,
    end_problems,
    epoch_problems,
    ledger_problems,
    loss_problems,
    lost_steps,
    redone_steps,
    save_under_way,
    snapshot_problems,
    words_problem,
)

# Six samples, two a step, three steps an epoch, two epochs.
KEYS = {1: ("a", "b"), 2: ("c", "d"), 3: ("e", "f"), 4: ("f", "a"), 5: ("b", "c"), 6: ("d", "e")}
CALM = BaselineResult(digest="d" * 64, ledger=KEYS, samples=frozenset("abcdef"))
TRACEBACK = """Traceback (most recent call last):
  File "somewhere.py", line 1, in work
RuntimeError: Connection closed by peer
"""


def attempt(number: int, parent: int | None, last: int, **changes: object) -> AttemptRecord:
    """An attempt that did the steps after ``parent`` up to ``last`` as the calm run."""
    steps = tuple(range((parent or 0) + 1, last + 1))
    made = AttemptRecord(number=number, parent=parent, steps=steps, ledger=tuple((step, KEYS[step]) for step in steps))
    return dataclasses.replace(made, **changes)


WHOLE = (attempt(1, 0, 3), attempt(2, 2, 6))


def test_a_run_that_was_cut_and_ended_as_the_calm_one_is_right() -> None:
    assert end_problems(0, CALM.digest, WHOLE, CALM) == []


def test_steps_lost_and_redone_are_counted_from_the_rows() -> None:
    assert lost_steps(WHOLE) == [1]
    assert redone_steps(WHOLE) == 1
    assert lost_steps([attempt(1, 0, 3), attempt(2, 3, 6)]) == [0]


def test_an_attempt_that_ended_before_it_chose_a_checkpoint_loses_nothing_and_hides_no_loss() -> None:
    unborn = AttemptRecord(number=2, parent=None, steps=())
    assert lost_steps([attempt(1, 0, 5), unborn, attempt(3, 2, 6)]) == [3]


def test_an_attempt_that_did_no_step_after_its_checkpoint_loses_none() -> None:
    idle = AttemptRecord(number=2, parent=3, steps=())
    assert lost_steps([attempt(1, 0, 3), idle, attempt(3, 3, 6)]) == [0, 0]


@pytest.mark.parametrize(
    ("last", "saved", "allowed", "under_way"),
    [
        (3, (), 3, False),
        (4, (), 4, True),
        (7, (), 7, True),
        (7, (4,), 3, False),
        (8, (4,), 4, True),
        (9, (4, 8), 1, False),
        (6, (4, 5), 1, False),
        (13, (4,), 8, True),
    ],
)
def test_a_killed_attempt_may_lose_what_came_after_its_newest_checkpoint(
    last: int, saved: tuple[int, ...], allowed: int, under_way: bool
) -> None:
    events = tuple(("checkpoint", step) for step in saved)
    killed = AttemptRecord(number=1, parent=0, steps=tuple(range(1, last + 1)), events=events)
    assert allowed_loss(killed, 4) == allowed
    assert allowed_loss(killed, 4, beside=False) == min(allowed, 4)
    assert save_under_way(killed, 4) == under_way


def test_a_killed_attempt_that_went_on_from_a_checkpoint_may_not_lose_what_came_before() -> None:
    assert allowed_loss(AttemptRecord(number=2, parent=8, steps=(9, 10)), 4) == 2
    assert not save_under_way(AttemptRecord(number=2, parent=8, steps=(9, 10)), 4)


def test_a_lost_step_beyond_what_is_allowed_is_found() -> None:
    assert loss_problems(1, 0) == ["1 steps lost, at most 0 allowed"]
    assert loss_problems(8, 8) == []


def test_another_digest_or_exit_code_is_found() -> None:
    assert end_problems(0, "e" * 64, WHOLE, CALM) == ["digest eeeeeeeeeeee, not the calm run's dddddddddddd"]
    assert end_problems(70, CALM.digest, WHOLE, CALM) == ["the last start ended with exit code 70"]


def test_a_step_that_took_other_samples_is_found() -> None:
    swapped = dataclasses.replace(WHOLE[1], ledger=((3, ("e", "e")), *WHOLE[1].ledger[1:]))
    problems = ledger_problems([WHOLE[0], swapped], CALM)
    assert "attempt 2 took other samples at step 3 than the calm run" in problems
    assert "epoch 0 holds sample e more than once" in problems
    assert "epoch 0 lacks sample f" in problems


def test_samples_in_another_order_are_found() -> None:
    turned = dataclasses.replace(WHOLE[0], ledger=((1, ("b", "a")), *WHOLE[0].ledger[1:]))
    assert ledger_problems([turned, WHOLE[1]], CALM) == ["attempt 1 took other samples at step 1 than the calm run"]


def test_other_samples_in_a_step_that_was_redone_are_found() -> None:
    wrong = dataclasses.replace(WHOLE[0], ledger=(*WHOLE[0].ledger[:2], (3, ("f", "e"))))
    assert ledger_problems([wrong, WHOLE[1]], CALM) == ["attempt 1 took other samples at step 3 than the calm run"]


def test_a_step_that_nobody_did_is_found() -> None:
    (problem,) = ledger_problems([attempt(1, 0, 4)], CALM)
    assert problem == "the ledger lacks step 5 and 1 more"
    skipped = dataclasses.replace(WHOLE[1], ledger=WHOLE[1].ledger[1:])
    assert any("ledger holds steps [4, 5, 6], not [3, 4, 5]" in text for text in ledger_problems([skipped], CALM))


def test_a_step_done_twice_in_one_attempt_is_found() -> None:
    doubled = dataclasses.replace(WHOLE[1], ledger=(WHOLE[1].ledger[0], *WHOLE[1].ledger))
    assert any("ledger holds steps [3, 3, 4, 5, 6]" in text for text in ledger_problems([WHOLE[0], doubled], CALM))


@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        ("abcdeffabcde", []),
        ("abcdeffabcd", []),
        ("abcdeffabcdd", ["epoch 1 holds sample d more than once", "epoch 1 lacks sample e"]),
        ("abcdeefabcde", ["epoch 0 holds sample e more than once", "epoch 0 lacks sample f"]),
        ("abcdefff", ["epoch 1 holds sample f more than once"]),
    ],
)
def test_a_doubled_or_a_lost_sample_of_an_epoch_is_found(keys: str, problems: list[str]) -> None:
    assert epoch_problems(tuple(keys), frozenset("abcdef")) == problems


def test_one_line_is_clear_and_progress_is_no_complaint() -> None:
    assert words_problem("step 5/24  loss 1.2043  310 samples/s\nhsadml: data-0001.tar: sample x: damaged\n") is None


def test_launcher_and_peers_may_add_a_line_of_a_known_form() -> None:
    cause = "hsadml: rank 1: data-0001.tar: sample x: damaged\n"
    peer = "hsadml: rank 0: another rank is gone or hangs, noticed at step 5 (stage vote): connection closed\n"
    launcher = "hsadml: rank 1 ended with exit code 1\n"
    assert words_problem(cause + peer + launcher) is None
    assert words_problem(peer + launcher), "nobody says why"
    assert words_problem(cause + peer + launcher + "something else\n")


def test_each_rank_may_say_the_cause_once() -> None:
    both = "hsadml: rank 0: hang: rank 1 is busy\nhsadml: rank 1: hang: rank 1 is busy\n"
    assert words_problem(both) is None
    assert words_problem(both + "hsadml: rank 1: and more\n")
    assert words_problem("hsadml: one line\nhsadml: another line\n")


@pytest.mark.parametrize("stderr", ["", TRACEBACK, "one\ntwo\n", "hsadml: damaged\n" + TRACEBACK])
def test_silence_several_lines_and_tracebacks_are_not_clear(stderr: str) -> None:
    assert words_problem(stderr)


def test_a_clear_error_has_its_exit_code_and_names_what_it_must() -> None:
    line = "hsadml: data-0001.tar: sample x: damaged\n"
    assert clear_error_problems(1, line, names=("data-0001.tar", "x")) == []
    assert clear_error_problems(0, line) == ["exit code 0, not one of (1, 2, 70, 75)"]
    assert clear_error_problems(-9, line) == ["exit code -9, not one of (1, 2, 70, 75)"]
    assert clear_error_problems(1, line, names=("data-0002.tar",)) == ["'data-0002.tar' is not named on stderr"]
    assert "traceback" in clear_error_problems(70, TRACEBACK)[0]


def test_any_change_of_a_folder_is_found() -> None:
    before = {"a": "1", "b": "2"}
    assert snapshot_problems(before, dict(before)) == []
    assert snapshot_problems(before, {"a": "3", "c": "4"}) == ["a has changed", "c is new", "b is gone"]


def test_any_problem_makes_a_fault_lost() -> None:
    assert decide_outcome([], "survived", "went on") == ("survived", "went on")
    assert decide_outcome(["a", "b"], "clear_error", "one line") == ("lost", "a; b")


def test_the_document_holds_every_fault() -> None:
    fault = Fault(kind="TERM", step=3, pids=(17,), exit_codes=(85, 0), outcome="survived", detail="went on from step 3")
    record = json.loads(as_document(7, {"cores": 2}, [fault]))
    assert record["seed"] == 7
    assert record["machine"] == {"cores": 2}
    names = {"kind", "step", "pids", "exit_codes", "outcome", "detail", "figures"}
    assert [set(one) for one in record["faults"]] == [names]
    assert record["faults"][0]["exit_codes"] == [85, 0]
