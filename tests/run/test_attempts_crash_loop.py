import pytest

from hsadml_dist.run.attempts import crash_loop_reason
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import JsonlWriter


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


def attempts(run, *ends):
    """Attempts that ended so; each end is a list of event rows."""
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
    ("last", "said"),
    [
        (KILLED, "without a word: it was killed, or its machine was lost"),
        (NEVER_STARTED, "without a word: it was killed, or its machine was lost"),
        (STOPPED_AT_ONCE, "stopped before its first checkpoint (rank 1: SIGTERM)"),
        (PEER_LOST, "with this error: rank 1 died"),
    ],
)
def test_three_in_a_row_without_a_checkpoint_end_the_run_with_the_reason(run, last, said):
    me = attempts(run, SAVED, KILLED, STOPPED_AT_ONCE, last)
    reason = crash_loop_reason(run, me, saved_by={1})
    assert f"attempts 2, 3 and 4 ended without a new checkpoint, the last {said}; see attempts/0004/logs" in reason
    assert "a start by hand counts anew" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("breaking", [SAVED, FINISHED, BY_USER], ids=["saved", "finished", "by user"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_that_is_broken_goes_on(run, breaking, place):
    ends = [KILLED, KILLED, KILLED]
    ends[place] = breaking
    assert crash_loop_reason(run, attempts(run, *ends), saved_by=set()) is None


def test_fewer_than_three_go_on(run):
    assert crash_loop_reason(run, attempts(run, KILLED, KILLED), saved_by=set()) is None
    assert crash_loop_reason(run, run.attempt(1), saved_by=set()) is None


def test_a_checkpoint_counts_though_its_event_was_cut_off(run):
    me = attempts(run, KILLED, KILLED, KILLED)
    assert crash_loop_reason(run, me, saved_by={2}) is None
    assert crash_loop_reason(run, me, saved_by={4}) is not None


def test_an_end_of_an_older_version_that_named_no_exit_code_was_the_users(run):
    me = attempts(run, KILLED, [{"event": "failed", "reason": "x"}], KILLED)
    assert crash_loop_reason(run, me, saved_by=set()) is None


def test_after_the_stop_a_start_by_hand_counts_anew(run):
    refused = [{"event": "failed", "reason": "no progress", "exit_code": 1}]
    assert crash_loop_reason(run, attempts(run, KILLED, KILLED, KILLED, refused), saved_by=set()) is None
    for ends in ([KILLED], [KILLED, KILLED]):
        other = RunFolder(run.path.with_name(f"run-{len(ends)}"))
        assert crash_loop_reason(other, attempts(other, KILLED, KILLED, KILLED, refused, *ends), saved_by=set()) is None
    third = RunFolder(run.path.with_name("run-3"))
    me = attempts(third, KILLED, KILLED, KILLED, refused, KILLED, KILLED, KILLED)
    assert "attempts 5, 6 and 7" in crash_loop_reason(third, me, saved_by=set())
