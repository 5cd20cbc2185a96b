import json

import pytest

from hsadml_dist.run.attempts import crash_loop_reason
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import JsonlWriter


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


def attempts(run, *ends):
    """Create attempts with the given event rows; return the one after them."""
    for number, rows in enumerate(ends, start=1):
        attempt = run.attempt(number)
        attempt.path.mkdir(parents=True)
        for row in rows:
            JsonlWriter(attempt.events).write(row)
    me = run.attempt(len(ends) + 1)
    me.path.mkdir(parents=True)
    return me


KILLED = [{"event": "started"}]
NEVER_STARTED = []
STOPPED_AT_ONCE = [{"event": "started"}, {"event": "signal", "noticed": ["rank 1: SIGTERM"]}, {"event": "stopped"}]
PEER_LOST = [{"event": "started"}, {"event": "failed", "reason": "rank 1 died", "exit_code": 70}]
BY_USER = [{"event": "started"}, {"event": "failed", "reason": "no such fold", "exit_code": 1}]
SAVED = [{"event": "started"}, {"event": "checkpoint", "step": 10}]
FINISHED = [{"event": "started"}, {"event": "resumed"}, {"event": "finished"}]


@pytest.mark.parametrize(
    ("last", "facts"),
    [
        (KILLED, ["killed"]),
        (NEVER_STARTED, ["killed"]),
        (PEER_LOST, ["error", "rank 1 died"]),
    ],
)
def test_crash_loop_after_three_attempts_without_checkpoint_gives_the_last_ending(run, last, facts):
    me = attempts(run, SAVED, KILLED, STOPPED_AT_ONCE, KILLED, last)
    reason = crash_loop_reason(run, me, saved_by={1})
    assert "attempts 2, 4 and 5" in reason, "the third was asked to stop"
    assert "attempts/0005/logs" in reason
    assert all(fact in reason for fact in facts)
    assert "\n" not in reason


def test_attempts_that_were_asked_to_stop_are_no_crash_loop(run):
    assert crash_loop_reason(run, attempts(run, SAVED, *[STOPPED_AT_ONCE] * 5), saved_by={1}) is None


@pytest.mark.parametrize(("stage", "is_loop"), [("evaluate", False), ("step", True)])
def test_attempts_that_were_killed_in_the_evaluation_are_no_crash_loop(run, stage, is_loop):
    me = attempts(run, SAVED, *[KILLED] * 3)
    for attempt in run.attempts():
        attempt.rank_heartbeats.mkdir()
        attempt.rank_heartbeat(0).write_text(json.dumps({"stage": stage}))
    assert (crash_loop_reason(run, me, saved_by={1}) is not None) == is_loop


@pytest.mark.parametrize("progress", [SAVED, FINISHED, BY_USER], ids=["saved", "finished", "by user"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_crash_loop_count_restarts_after_progress_or_a_user_error(run, progress, place):
    ends = [KILLED, KILLED, KILLED]
    ends[place] = progress
    assert crash_loop_reason(run, attempts(run, *ends), saved_by=set()) is None


def test_fewer_than_three_attempts_are_no_crash_loop(run):
    assert crash_loop_reason(run, attempts(run, KILLED, KILLED), saved_by=set()) is None
    assert crash_loop_reason(run, run.attempt(1), saved_by=set()) is None


def test_checkpoint_without_event_counts_as_progress(run):
    me = attempts(run, KILLED, KILLED, KILLED)
    assert crash_loop_reason(run, me, saved_by={2}) is None
    assert crash_loop_reason(run, me, saved_by={4}) is not None


def test_failure_without_exit_code_counts_as_user_error(run):
    me = attempts(run, KILLED, [{"event": "failed", "reason": "x"}], KILLED)
    assert crash_loop_reason(run, me, saved_by=set()) is None


def test_crash_loop_count_restarts_after_its_refusal(run):
    refused = [{"event": "failed", "reason": "no progress", "exit_code": 1}]
    assert crash_loop_reason(run, attempts(run, KILLED, KILLED, KILLED, refused), saved_by=set()) is None
    for ends in ([KILLED], [KILLED, KILLED]):
        other = RunFolder(run.path.with_name(f"run-{len(ends)}"))
        assert crash_loop_reason(other, attempts(other, KILLED, KILLED, KILLED, refused, *ends), saved_by=set()) is None
    third = RunFolder(run.path.with_name("run-3"))
    me = attempts(third, KILLED, KILLED, KILLED, refused, KILLED, KILLED, KILLED)
    assert "attempts 5, 6 and 7" in crash_loop_reason(third, me, saved_by=set())
