import json
import os
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from hsadml_dist.config.yaml_loader import build_recipe, dump_recipe
from hsadml_dist.errors import ExitCode
from hsadml_dist.process import process_start_time
from hsadml_dist.run.attempts import crash_loop_reason, current_holder
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import StopReason, stop_event_details
from hsadml_dist.run.run_state import EVENTS_BYTES, METRICS_BYTES, format_age, read_run_state
from tests.run.run_factory import add_events, add_rows, checkpoint, make_attempt, make_run, stopped


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def read(run):
    return read_run_state(run, time.time())


def test_state_of_a_run_that_was_never_started(run):
    state = read(run)
    assert (state.phase, state.attempts, state.step, state.total_steps, state.last_sign) == ("empty", 0, 0, 100, None)


def test_state_of_a_run_that_starts_and_trains(run):
    attempt = make_attempt(run, events=[{"event": "started"}], job="12", restart=3)
    state = read(run)
    assert (state.phase, state.step, state.loss, state.samples_per_second) == ("starting", 0, None, None)
    assert (state.job, state.restart, state.world_size, state.checkpoint_step) == ("12", 3, 2, None)
    add_rows(attempt, range(1, 41))
    add_events(attempt, [checkpoint(20, 1), checkpoint(40, 1)])
    state = read(run)
    assert (state.phase, state.attempts, state.step, state.loss, state.checkpoint_step) == (
        "running",
        1,
        40,
        1 / 40,
        40,
    )
    assert state.samples_per_second == pytest.approx(80.0)
    assert state.last_sign == pytest.approx(time.time(), abs=5)


def test_elapsed_and_remaining_time_of_a_running_and_a_stopped_attempt(run):
    now = time.time()
    attempt = make_attempt(run, steps=range(1, 41), started=now - 50)
    state = read_run_state(run, now)
    assert (state.elapsed_seconds, state.left_seconds) == (pytest.approx(50), pytest.approx(6.0))
    add_events(attempt, [{**event, "time": now - 20} for event in stopped(40, "rank 0: SIGTERM")])
    state = read_run_state(run, now)
    assert (state.elapsed_seconds, state.left_seconds, state.knn_accuracy) == (pytest.approx(30), None, None)


@pytest.mark.parametrize(("text", "accuracy"), [('{"knn_accuracy": 0.875}', 0.875), ("{", None), (None, None)])
def test_accuracy_of_a_finished_run_is_that_of_its_result(run, text, accuracy):
    make_attempt(run, steps=[100], events=[{"event": "finished", "step": 100}])
    if text is not None:
        run.result.write_text(text)
    state = read(run)
    assert (state.phase, state.knn_accuracy, state.left_seconds) == ("finished", accuracy, None)


def test_rate_is_the_mean_of_the_last_steps(run):
    attempt = make_attempt(run, steps=range(1, 6))
    slow = {"attempt": 1, "loss": 1.0, "samples": 8, "step_seconds": 0.8}
    with attempt.metrics.open("a") as file:
        file.writelines(json.dumps({"step": step, **slow}) + "\n" for step in range(6, 26))
    assert read(run).samples_per_second == pytest.approx(10.0)


def test_step_before_the_first_one_is_that_of_the_parent_checkpoint(run):
    make_attempt(run, steps=range(1, 31), events=[checkpoint(20, 1)], silent_for=500)
    second = make_attempt(run)
    assert (read(run).phase, read(run).step, read(run).checkpoint_step) == ("starting", 30, 20)
    second.parent.write_text('{"checkpoint": "step-00000020.attempt-0001"}')
    state = read(run)
    assert (state.step, state.loss, state.attempts, state.checkpoint_step) == (20, 1 / 30, 2, 20)
    add_rows(second, [21])
    assert (read(run).phase, read(run).step, read(run).checkpoint_step) == ("running", 21, 20)


def test_checkpoint_step_ignores_checkpoints_outside_the_lineage(run):
    make_attempt(run, steps=range(1, 31), events=[checkpoint(20, 1)])
    make_attempt(run, steps=[1], parent=None)
    assert read(run).checkpoint_step is None


def test_stop_reason_names_signal_and_rank(run):
    make_attempt(run, steps=[1, 2], events=stopped(2, "rank 1: SIGUSR2", time=5.0), silent_for=900)
    state = read(run)
    assert (state.phase, state.last_sign, state.stop_is_final) == ("stopped", 5.0, False)
    assert "SIGUSR2 (rank 1)" in state.reason


def test_stop_reason_counts_many_ranks(run):
    make_attempt(run, events=stopped(2, *[f"rank {rank}: SIGTERM" for rank in range(64)], "rank 64: time limit"))
    assert "SIGTERM (64 ranks), time limit (rank 64)" in read(run).reason


def test_stop_without_reasons_has_no_text(run):
    make_attempt(run, events=stopped(2))
    assert (read(run).phase, read(run).reason) == ("stopped", None)


@pytest.mark.parametrize(
    ("reason", "final"), [(StopReason.STOP_FILE, True), (StopReason.SIGTERM, False), (StopReason.END_TIME, False)]
)
@pytest.mark.parametrize("version", ["current", "without reasons", "without final"])
def test_stop_is_final_if_a_stop_file_requested_it(run, reason, final, version):
    signal = {"event": "signal", "step": 2, **stop_event_details([reason])}
    stop = {"event": "stopped", "step": 2, "final": final}
    if version == "without reasons":
        del signal["reasons"]
    if version != "current":
        del stop["final"]
    make_attempt(run, events=[signal, stop])
    assert (read(run).phase, read(run).stop_is_final) == ("stopped", final)
    assert reason.label in read(run).reason


def test_failure_reason_is_one_line(run):
    make_attempt(run, steps=[1], events=[{"event": "failed", "reason": "no\n  space", "exit_code": 1}])
    state = read(run)
    assert (state.phase, state.reason, state.exit_code) == ("failed", "no space", 1)


def test_hang_event_takes_precedence_over_a_peers_failure(run):
    hang = {"event": "hang", "step": 6, "reason": "rank 1 is busy"}
    make_attempt(run, events=[hang, {"event": "failed", "reason": "lost a peer", "exit_code": 70}])
    assert read(run).phase == "failed"
    assert "step 7" in read(run).reason
    assert "rank 1 is busy" in read(run).reason
    assert read(run).exit_code == ExitCode.INTERNAL_ERROR


def test_crash_loop_is_a_failure_with_its_reason(run):
    for _ in range(3):
        make_attempt(run, events=[{"event": "failed", "reason": "a peer is gone", "exit_code": 70}])
    reason = crash_loop_reason(run, run.attempt(4), ())
    make_attempt(run, events=[{"event": "failed", "reason": reason, "exit_code": 1}])
    state = read(run)
    assert (state.phase, state.exit_code, state.attempts) == ("failed", 1, 4)
    assert "attempts 1, 2 and 3" in state.reason
    assert "a peer is gone" in state.reason


def test_finished_after_an_earlier_stop(run):
    make_attempt(run, events=stopped(2, "rank 0: SIGTERM"))
    make_attempt(run, steps=range(3, 101), events=[checkpoint(100, 2), {"event": "finished", "step": 100}])
    state = read(run)
    assert (state.phase, state.step, state.reason, state.attempts) == ("finished", 100, None, 2)


def test_phase_is_silent_after_a_minute_without_heartbeat(run):
    make_attempt(run, steps=[1], silent_for=50)
    assert read(run).phase == "running"
    make_attempt(run, steps=[2], silent_for=70)
    state = read(run)
    assert (state.phase, state.reason) == ("silent", None)
    assert state.last_sign == pytest.approx(time.time() - 70, abs=5)


def test_phase_is_silent_at_once_if_the_process_of_this_machine_is_gone(run):
    child = subprocess.Popen(["sleep", "100"])
    try:
        me = {**asdict(current_holder("t", {})), "pid": child.pid, "born": process_start_time(child.pid)}
        make_attempt(run, steps=[1], **me)
        assert read(run).phase == "running"
    finally:
        child.kill()
        child.wait()
    state = read(run)
    assert state.phase == "silent"
    assert f"process {child.pid} on {me['host']}" in state.reason


def test_stage_of_a_running_attempt(run):
    attempt = make_attempt(run, steps=[1])
    attempt.rank_heartbeats.mkdir()
    attempt.rank_heartbeat(0).write_text(json.dumps({"rank": 0, "step": 1, "stage": "evaluate"}))
    assert (read(run).phase, read(run).stage) == ("running", "evaluate")


def test_total_steps_are_read_from_the_recipe(tmp_path):
    dump_recipe(build_recipe({"data.shards": "s", "train.steps": 321}), tmp_path / "config.yaml")
    assert read(RunFolder(tmp_path)).total_steps == 321


def test_total_steps_of_epochs_are_read_from_the_attempt(tmp_path):
    run = make_run(tmp_path / "run", steps=None, epochs=3)
    assert read(run).total_steps is None
    make_attempt(run, total_steps=60)
    assert read(run).total_steps == 60


def test_truncated_files_are_no_error(run):
    attempt = make_attempt(run, steps=[1])
    for path in (attempt.record, attempt.parent):
        path.write_text('{"job": ')
    with attempt.events.open("a") as file:
        file.write('{"event": "fail')
    assert read(run).phase == "running"


def test_only_the_end_of_long_files_is_read(run):
    attempt = make_attempt(run, parent=None)
    for path in (attempt.metrics, attempt.events, attempt.ledger):
        with path.open("wb") as file:
            file.truncate(3 * 10**8)  # without taking room on the disk
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
    add_rows(attempt, range(1, 101))
    add_events(attempt, [checkpoint(90, 1)])
    read(run)
    before = bytes_read()
    state = read(run)
    assert bytes_read() - before < METRICS_BYTES + EVENTS_BYTES + 20_000
    assert (state.step, state.checkpoint_step, state.samples_per_second) == (100, 90, pytest.approx(80.0))


def bytes_read():
    """Return how many bytes this process has read so far."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])


def test_reading_the_state_writes_nothing(run):
    make_attempt(run, steps=[1], events=stopped(1, "rank 0: SIGTERM"))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    read(run)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172800, "2 d"), (-3, "0 s")],
)
def test_format_age_uses_one_unit(seconds, text):
    assert format_age(1e9, 1e9 - seconds) == text
    assert format_age(1e9, None) == "-"
