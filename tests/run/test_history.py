import time

import pytest

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import EventLog, count_repeated_steps, merged_events, merged_ledger, merged_metrics
from hsadml_dist.run.jsonl import JsonlWriter, read_jsonl


def test_event_rows_have_what_readers_rely_on(tmp_path):
    attempt = RunFolder(tmp_path).attempt(3)
    before = time.time()
    events = EventLog(attempt, job="77", restart=2)
    events.write("started", 0, world_size=4)
    events.write("stopped", 12)
    first, second = read_jsonl(attempt.events)
    assert before <= first.pop("time") <= second.pop("time") <= time.time()
    common = {"attempt": 3, "job": "77", "restart": 2}
    assert first == {"event": "started", "step": 0, "world_size": 4, **common}
    assert second == {"event": "stopped", "step": 12, **common}


def test_outside_of_slurm_there_is_no_job(tmp_path):
    attempt = RunFolder(tmp_path).attempt(1)
    EventLog(attempt, job=None, restart=0).write("finished", 5)
    [row] = read_jsonl(attempt.events)
    assert (row["job"], row["restart"]) == (None, 0)


@pytest.fixture
def run(tmp_path):
    """Attempt 1 did steps 1 to 4, attempt 2 went on after step 2, attempt 3 did nothing."""
    folder = RunFolder(tmp_path)
    for attempt, steps in ((1, (1, 2, 3, 4)), (2, (3, 4, 5)), (3, ())):
        folder.attempt(attempt).path.mkdir(parents=True)
        for kind in ("metrics", "ledger"):
            for step in steps:
                JsonlWriter(getattr(folder.attempt(attempt), kind)).write({"step": step, "attempt": attempt})
        JsonlWriter(folder.attempt(attempt).events).write({"event": "started", "attempt": attempt})
    return tmp_path


@pytest.mark.parametrize("merged", [merged_metrics, merged_ledger])
def test_a_redone_step_counts_as_its_last_attempt_did_it(run, merged):
    assert [(row["step"], row["attempt"]) for row in merged(run)] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


def test_attempts_beyond_9999_still_count_in_their_order(tmp_path):
    for attempt in (9999, 10000):
        JsonlWriter(RunFolder(tmp_path).attempt(attempt).metrics).write({"step": 1, "attempt": attempt})
    assert merged_metrics(tmp_path) == [{"step": 1, "attempt": 10000}]


def test_events_of_all_attempts_in_order(run):
    assert [row["attempt"] for row in merged_events(run)] == [1, 2, 3]


def test_steps_done_twice_are_counted(run):
    assert count_repeated_steps(run) == 2


def test_a_run_without_attempts(tmp_path):
    assert merged_metrics(tmp_path) == merged_ledger(tmp_path) == merged_events(tmp_path) == []
    assert count_repeated_steps(tmp_path) == 0
