"""Artificial evidence: every check accepts correct evidence and finds each kind of problem."""

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
    message_problem,
    redone_steps,
    save_under_way,
    snapshot_problems,
)

# Six samples, two per step, three steps per epoch, two epochs.
KEYS = {1: ("a", "b"), 2: ("c", "d"), 3: ("e", "f"), 4: ("f", "a"), 5: ("b", "c"), 6: ("d", "e")}
BASELINE = BaselineResult(digest="d" * 64, ledger=KEYS, samples=frozenset("abcdef"))
TRACEBACK = """Traceback (most recent call last):
  File "somewhere.py", line 1, in work
RuntimeError: Connection closed by peer
"""


def attempt(number: int, parent: int | None, last: int, **changes: object) -> AttemptRecord:
    """Return an attempt that did the steps after ``parent`` up to ``last`` like the baseline."""
    steps = tuple(range((parent or 0) + 1, last + 1))
    made = AttemptRecord(number=number, parent=parent, steps=steps, ledger=tuple((step, KEYS[step]) for step in steps))
    return dataclasses.replace(made, **changes)


ATTEMPTS = (attempt(1, 0, 3), attempt(2, 2, 6))


def test_interrupted_run_that_ends_like_the_baseline_has_no_problems() -> None:
    assert end_problems(0, BASELINE.digest, ATTEMPTS, BASELINE) == []


def test_lost_and_repeated_steps_are_counted_from_the_rows() -> None:
    assert lost_steps(ATTEMPTS) == [1]
    assert redone_steps(ATTEMPTS) == 1
    assert lost_steps([attempt(1, 0, 3), attempt(2, 3, 6)]) == [0]


def test_lost_steps_ignore_an_attempt_that_chose_no_checkpoint() -> None:
    unstarted = AttemptRecord(number=2, parent=None, steps=())
    assert lost_steps([attempt(1, 0, 5), unstarted, attempt(3, 2, 6)]) == [3]


def test_lost_steps_of_an_attempt_without_steps_are_zero() -> None:
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
def test_allowed_loss_counts_steps_since_the_newest_checkpoint(
    last: int, saved: tuple[int, ...], allowed: int, under_way: bool
) -> None:
    events = tuple(("checkpoint", step) for step in saved)
    killed = AttemptRecord(number=1, parent=0, steps=tuple(range(1, last + 1)), events=events)
    assert allowed_loss(killed, 4) == allowed
    assert allowed_loss(killed, 4, background=False) == min(allowed, 4)
    assert save_under_way(killed, 4) == under_way


def test_allowed_loss_starts_at_the_parent_checkpoint() -> None:
    assert allowed_loss(AttemptRecord(number=2, parent=8, steps=(9, 10)), 4) == 2
    assert not save_under_way(AttemptRecord(number=2, parent=8, steps=(9, 10)), 4)


def test_more_lost_steps_than_allowed_are_a_problem() -> None:
    assert loss_problems(1, 0) == ["1 steps lost, at most 0 allowed"]
    assert loss_problems(8, 8) == []


def test_other_digest_or_exit_code_is_a_problem() -> None:
    assert end_problems(0, "e" * 64, ATTEMPTS, BASELINE) == ["digest eeeeeeeeeeee, not the baseline's dddddddddddd"]
    assert end_problems(70, BASELINE.digest, ATTEMPTS, BASELINE) == ["the last start ended with exit code 70"]


def test_other_samples_in_a_step_are_a_problem() -> None:
    swapped = dataclasses.replace(ATTEMPTS[1], ledger=((3, ("e", "e")), *ATTEMPTS[1].ledger[1:]))
    problems = ledger_problems([ATTEMPTS[0], swapped], BASELINE)
    assert "attempt 2 used other samples at step 3 than the baseline run" in problems
    assert "epoch 0 repeats sample e" in problems
    assert "epoch 0 lacks sample f" in problems


def test_other_sample_order_is_a_problem() -> None:
    reordered = dataclasses.replace(ATTEMPTS[0], ledger=((1, ("b", "a")), *ATTEMPTS[0].ledger[1:]))
    (problem,) = ledger_problems([reordered, ATTEMPTS[1]], BASELINE)
    assert problem.startswith("attempt 1 used other samples at step 1")


def test_other_samples_in_a_repeated_step_are_a_problem() -> None:
    wrong = dataclasses.replace(ATTEMPTS[0], ledger=(*ATTEMPTS[0].ledger[:2], (3, ("f", "e"))))
    (problem,) = ledger_problems([wrong, ATTEMPTS[1]], BASELINE)
    assert problem.startswith("attempt 1 used other samples at step 3")


def test_missing_step_is_a_problem() -> None:
    (problem,) = ledger_problems([attempt(1, 0, 4)], BASELINE)
    assert problem == "the ledger lacks step 5 and 1 more"
    skipped = dataclasses.replace(ATTEMPTS[1], ledger=ATTEMPTS[1].ledger[1:])
    assert any("ledger has steps [4, 5, 6], not [3, 4, 5]" in text for text in ledger_problems([skipped], BASELINE))


def test_step_repeated_within_an_attempt_is_a_problem() -> None:
    repeated = dataclasses.replace(ATTEMPTS[1], ledger=(ATTEMPTS[1].ledger[0], *ATTEMPTS[1].ledger))
    assert any(
        "ledger has steps [3, 3, 4, 5, 6]" in text for text in ledger_problems([ATTEMPTS[0], repeated], BASELINE)
    )


@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        ("abcdeffabcde", []),
        ("abcdeffabcd", []),
        ("abcdeffabcdd", ["epoch 1 repeats sample d", "epoch 1 lacks sample e"]),
        ("abcdeefabcde", ["epoch 0 repeats sample e", "epoch 0 lacks sample f"]),
        ("abcdefff", ["epoch 1 repeats sample f"]),
    ],
)
def test_repeated_or_missing_sample_of_an_epoch_is_a_problem(keys: str, problems: list[str]) -> None:
    assert epoch_problems(tuple(keys), frozenset("abcdef")) == problems


def test_one_line_is_a_clear_message_and_progress_is_ignored() -> None:
    assert message_problem("step 5/24  loss 1.2043  310 samples/s\nhsadml: data-0001.tar: sample x: damaged\n") is None


def test_known_lines_of_launcher_and_peers_are_allowed() -> None:
    cause = "hsadml: rank 1: data-0001.tar: sample x: damaged\n"
    peer = "hsadml: rank 0: another rank is gone or hangs, noticed at step 5 (stage vote): connection closed\n"
    launcher = "hsadml: rank 1 ended with exit code 1\n"
    assert message_problem(cause + peer + launcher) is None
    assert message_problem(peer + launcher), "no line reports the cause"
    assert message_problem(cause + peer + launcher + "something else\n")


def test_each_rank_may_report_the_cause_once() -> None:
    both = "hsadml: rank 0: hang: rank 1 is busy\nhsadml: rank 1: hang: rank 1 is busy\n"
    assert message_problem(both) is None
    assert message_problem(both + "hsadml: rank 1: and more\n")
    assert message_problem("hsadml: one line\nhsadml: another line\n")


@pytest.mark.parametrize("stderr", ["", TRACEBACK, "one\ntwo\n", "hsadml: damaged\n" + TRACEBACK])
def test_no_message_several_lines_and_tracebacks_are_not_clear(stderr: str) -> None:
    assert message_problem(stderr)


def test_clear_error_has_a_documented_exit_code_and_the_names() -> None:
    line = "hsadml: data-0001.tar: sample x: damaged\n"
    assert clear_error_problems(1, line, names=("data-0001.tar", "x")) == []
    assert clear_error_problems(0, line) == ["exit code 0, not one of (1, 2, 70, 75)"]
    assert clear_error_problems(-9, line) == ["exit code -9, not one of (1, 2, 70, 75)"]
    assert clear_error_problems(1, line, names=("data-0002.tar",)) == ["'data-0002.tar' is not named on stderr"]
    assert "traceback" in clear_error_problems(70, TRACEBACK)[0]


def test_any_difference_of_snapshots_is_a_problem() -> None:
    before = {"a": "1", "b": "2"}
    assert snapshot_problems(before, dict(before)) == []
    assert snapshot_problems(before, {"a": "3", "c": "4"}) == ["a has changed", "c is new", "b is gone"]


def test_any_problem_makes_the_outcome_lost() -> None:
    assert decide_outcome([], "survived", "resumed") == ("survived", "resumed")
    assert decide_outcome(["a", "b"], "clear_error", "one line") == ("lost", "a; b")


def test_document_contains_every_fault() -> None:
    fault = Fault(kind="TERM", step=3, pids=(17,), exit_codes=(85, 0), outcome="survived", detail="resumed from step 3")
    record = json.loads(as_document(7, {"cores": 2}, [fault]))
    assert record["seed"] == 7
    assert record["machine"] == {"cores": 2}
    names = {"kind", "step", "pids", "exit_codes", "outcome", "detail", "figures"}
    assert [set(one) for one in record["faults"]] == [names]
    assert record["faults"][0]["exit_codes"] == [85, 0]
