import time

import pytest

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import (
    EventLog,
    StopReason,
    count_repeated_steps,
    merged_events,
    merged_ledger,
    merged_metrics,
    read_stop_reasons,
    stop_event_details,
)
from hsadml_dist.run.jsonl import JsonlWriter, read_jsonl


def test_event_log_rows_have_job_restart_attempt_and_time(tmp_path):
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


def test_event_log_outside_slurm_has_no_job(tmp_path):
    attempt = RunFolder(tmp_path).attempt(1)
    EventLog(attempt, job=None, restart=0).write("finished", 5)
    [row] = read_jsonl(attempt.events)
    assert (row["job"], row["restart"]) == (None, 0)


def test_stop_reasons_round_trip_through_the_signal_event():
    reasons = [None, *StopReason]
    details = stop_event_details(reasons)
    assert read_stop_reasons(details) == {rank: reason for rank, reason in enumerate(reasons) if reason}
    assert details["reasons"][0] == {"rank": 1, "reason": "sigterm"}
    assert details["noticed"][0] == "rank 1: SIGTERM"


def test_stop_reasons_of_older_versions_are_read_from_their_text():
    noticed = ["rank 0: STOP file", "rank 1: SIGUSR2", "rank 2: SIGTERM", "rank 10: time limit", "rank 11: requested"]
    assert read_stop_reasons({"noticed": noticed}) == {
        0: StopReason.STOP_FILE,
        1: StopReason.SIGUSR2,
        2: StopReason.SIGTERM,
        10: StopReason.END_TIME,
        11: StopReason.REQUESTED,
    }


@pytest.mark.parametrize(
    "row", [{}, {"noticed": []}, {"noticed": ["rank 0: other"]}, {"reasons": [{"rank": 0, "reason": "other"}]}]
)
def test_stop_reasons_of_unknown_kinds_are_skipped(row):
    assert read_stop_reasons(row) == {}


@pytest.fixture
def run(tmp_path):
    """A run whose attempt 1 did steps 1 to 4, attempt 2 resumed after step 2, and attempt 3 did nothing."""
    folder = RunFolder(tmp_path)
    for attempt, steps in ((1, (1, 2, 3, 4)), (2, (3, 4, 5)), (3, ())):
        folder.attempt(attempt).path.mkdir(parents=True)
        for kind in ("metrics", "ledger"):
            for step in steps:
                JsonlWriter(getattr(folder.attempt(attempt), kind)).write({"step": step, "attempt": attempt})
        JsonlWriter(folder.attempt(attempt).events).write({"event": "started", "attempt": attempt})
    return tmp_path


@pytest.mark.parametrize("merged", [merged_metrics, merged_ledger])
def test_merged_rows_take_a_repeated_step_from_the_latest_attempt(run, merged):
    assert [(row["step"], row["attempt"]) for row in merged(run)] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


def test_merged_rows_order_attempts_by_number_beyond_9999(tmp_path):
    for attempt in (9999, 10000):
        JsonlWriter(RunFolder(tmp_path).attempt(attempt).metrics).write({"step": 1, "attempt": attempt})
    assert merged_metrics(tmp_path) == [{"step": 1, "attempt": 10000}]


def test_merged_events_are_ordered_by_attempt(run):
    assert [row["attempt"] for row in merged_events(run)] == [1, 2, 3]


def test_count_repeated_steps(run):
    assert count_repeated_steps(run) == 2


def test_merged_rows_of_a_run_without_attempts_are_empty(tmp_path):
    assert merged_metrics(tmp_path) == merged_ledger(tmp_path) == merged_events(tmp_path) == []
    assert count_repeated_steps(tmp_path) == 0
