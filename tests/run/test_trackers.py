import io
import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from hsadml_dist.distributed.comm import FakeComm, SoloComm
from hsadml_dist.run import trackers
from hsadml_dist.run.attempts import current_holder, start_attempt
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import StopReason
from hsadml_dist.run.jsonl import read_jsonl
from hsadml_dist.run.rendezvous import RankContext
from hsadml_dist.run.trackers import (
    FileRecorder,
    MetricsRow,
    ProgressBar,
    ProgressLines,
    open_progress_display,
    open_recorder,
)

ROW = MetricsRow(
    step=4,
    attempt=1,
    epoch=0,
    loss=0.1 + 0.2,
    lr=1e-3,
    grad_norm=2.5,
    samples=12,
    step_seconds=0.5,
    data_wait_seconds=0.125,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(trackers.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def context(tmp_path):
    holder = current_holder("t", {"SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": "1"})
    return RankContext(attempt=start_attempt(RunFolder(tmp_path), holder, {}), holder=holder, comm=SoloComm())


def test_progress_lines_every_30_seconds_and_at_the_end(clock):
    stream = io.StringIO()
    lines = ProgressLines(stream, total=100)
    for step in range(1, 101):
        clock[0] += 1.0
        lines.log(replace(ROW, step=step, loss=1 / step))
    lines.close()
    printed = stream.getvalue().splitlines()
    assert [line.split()[1] for line in printed] == ["30/100", "60/100", "90/100", "100/100"]
    assert printed[0] == "step 30/100  loss 0.0333  24 samples/s"


def test_progress_display_is_a_bar_on_a_terminal_and_lines_elsewhere():
    assert isinstance(open_progress_display(io.StringIO(), 0, 10), ProgressLines)
    bar = open_progress_display(Terminal(), 3, 10)
    assert isinstance(bar, ProgressBar)
    bar.close()


def test_progress_bar_starts_at_the_completed_steps(capsys):
    bar = ProgressBar(3, 10)
    bar.log(replace(ROW, step=5, loss=0.25))
    bar.close()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "5/10" in printed.err
    assert "loss 0.2500" in printed.err


def test_recorder_on_rank_0_writes_rows_of_every_kind(context, capsys):
    records = open_recorder(context, tensorboard=False)
    assert isinstance(records, FileRecorder)
    records.event("started", 0, world_size=1)
    records.begin(3, 4)
    records.step(ROW)
    records.samples(4, 0, ("a", "b"))
    records.close()
    [metrics] = read_jsonl(context.attempt.metrics)
    assert metrics == {
        "step": 4,
        "attempt": 1,
        "epoch": 0,
        "loss": 0.1 + 0.2,
        "lr": 1e-3,
        "grad_norm": 2.5,
        "samples": 12,
        "step_seconds": 0.5,
        "data_wait_seconds": 0.125,
    }
    [event] = read_jsonl(context.attempt.events)
    assert (event["event"], event["job"], event["restart"]) == ("started", "9", 1)
    assert list(read_jsonl(context.attempt.ledger)) == [{"step": 4, "attempt": 1, "epoch": 0, "keys": ["a", "b"]}]
    assert "step 4/4  loss 0.3000  24 samples/s" in capsys.readouterr().err


def test_recorder_logs_its_events(context, caplog):
    recorder = open_recorder(context, tensorboard=False)
    with caplog.at_level(logging.INFO):
        recorder.event("checkpoint", 4, checkpoint="step-00000004")
        recorder.event("straggler", 5, rank=1)  # the trainer has warned of it
    recorder.close()
    (record,) = caplog.records
    assert all(fact in record.getMessage() for fact in ("checkpoint", "4", "step-00000004"))


@pytest.mark.parametrize(
    ("reasons", "final"),
    [([None, StopReason.SIGTERM], False), ([StopReason.STOP_FILE, StopReason.SIGTERM], True), ([None, None], False)],
)
def test_recorder_writes_the_reasons_of_a_stop_and_whether_it_is_final(context, reasons, final):
    records = open_recorder(context, tensorboard=False)
    records.stopped(7, reasons)
    records.close()
    signal, stopped = read_jsonl(context.attempt.events)
    assert (signal["event"], stopped["event"], stopped["final"]) == ("signal", "stopped", final)
    assert [(one["rank"], one["reason"]) for one in signal["reasons"]] == [
        (rank, reason) for rank, reason in enumerate(reasons) if reason
    ]
    assert signal["step"] == stopped["step"] == 7


def test_recorder_without_samples_writes_no_ledger(context):
    records = open_recorder(context, tensorboard=False)
    records.close()
    assert not context.attempt.ledger.exists()
    assert not context.attempt.tensorboard.exists()


def test_recorder_on_other_ranks_writes_nothing(context, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    records = open_recorder(replace(context, comm=FakeComm(1, 2)), tensorboard=True)
    records.event("started", 0)
    records.begin(0, 9)
    records.step(ROW)
    records.samples(1, 0, ["a"])
    records.stopped(1, [StopReason.SIGTERM])
    records.close()
    assert sorted(tmp_path.rglob("*")) == before


def test_tensorboard_tracker_writes_the_metrics_as_scalars(context):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = open_recorder(context, tensorboard=True)
    records.step(ROW)
    records.close()
    board = EventAccumulator(str(context.attempt.tensorboard))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {
        f"train/{name}" for name in ("loss", "lr", "grad_norm", "step_seconds", "data_wait_seconds")
    }
    [point] = board.Scalars("train/loss")
    assert (point.step, point.value) == (4, pytest.approx(0.3))


CRASH_AFTER_LOGGING = """
import ctypes, logging, sys
from pathlib import Path
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.trackers import configure_rank_logging
configure_rank_logging(RunFolder(Path(sys.argv[1])).attempt(1), int(sys.argv[2]))
logging.getLogger("hsadml_dist.trainer").warning("checkpoint %s rejected", "x")
logging.getLogger("other").debug("too detailed")
ctypes.string_at(0)
"""


def crash(folder, rank):
    """Run a process that logs as ``rank`` and then crashes."""
    attempt = RunFolder(folder).attempt(1)
    attempt.path.mkdir(parents=True)
    command = [sys.executable, "-c", CRASH_AFTER_LOGGING, str(folder), str(rank)]
    return attempt, subprocess.run(command, capture_output=True, text=True, check=False)


def test_rank_log_gets_log_records_and_the_stacks_of_a_crash(tmp_path):
    attempt, done = crash(tmp_path, 2)
    assert done.returncode < 0
    text = attempt.log(2).read_text()
    assert f"{logging.getLevelName(logging.WARNING)} hsadml_dist.trainer: checkpoint x rejected" in text
    assert "too detailed" not in text
    assert "Fatal Python error: Segmentation fault" in text
    assert 'File "<string>", line 9' in text
    assert attempt.log(2).name == "rank-0002.log"
    assert "rejected" not in done.stderr


def test_rank_log_of_rank_0_prints_warnings_to_stderr_too(tmp_path):
    _, done = crash(tmp_path, 0)
    assert done.stderr == "hsadml: checkpoint x rejected\n"
