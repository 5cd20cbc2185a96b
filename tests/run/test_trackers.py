import io
from dataclasses import replace

import pytest

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.run import trackers as progress
from hsadml_dist.run.attempts import current_holder, start_attempt
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import read_jsonl
from hsadml_dist.run.rendezvous import RankContext
from hsadml_dist.run.trackers import (
    BarProgress,
    FileRecorder,
    LineProgress,
    MetricsRow,
    NullRecorder,
    open_progress_display,
    open_recorder,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_each_30_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    lines = LineProgress(stream, total=100)
    for step in range(1, 101):
        clock[0] += 1.0
        lines.update(step, loss=1 / step, rate=123.4)
    lines.close()
    said = stream.getvalue().splitlines()
    assert [line.split()[1] for line in said] == ["30/100", "60/100", "90/100", "100/100"]
    assert said[0] == "step 30/100  loss 0.0333  123 samples/s"


def test_logs_get_lines_and_terminals_a_bar():
    assert isinstance(open_progress_display(io.StringIO(), 0, 10), LineProgress)
    bar = open_progress_display(Terminal(), 3, 10)
    assert isinstance(bar, BarProgress)
    bar.close()


def test_a_bar_goes_on_from_the_steps_done_before(capsys):
    bar = BarProgress(3, 10)
    bar.update(5, loss=0.25, rate=50.0)
    bar.close()
    said = capsys.readouterr()
    assert said.out == ""
    assert "5/10" in said.err
    assert "loss 0.2500" in said.err


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


@pytest.fixture
def context(tmp_path):
    holder = current_holder("t", {"SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": "1"})
    return RankContext(attempt=start_attempt(RunFolder(tmp_path), holder, {}), holder=holder, comm=SoloComm())


def test_the_first_rank_writes_rows_of_every_kind(context, capsys):
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


def test_without_samples_there_is_no_ledger(context):
    records = open_recorder(context, tensorboard=False)
    records.close()
    assert not context.attempt.ledger.exists()
    assert not context.attempt.tensorboard.exists()


def test_other_ranks_write_nothing(context, tmp_path):
    comm = SoloComm()
    comm.topology = Topology(rank=1, world_size=2)
    before = sorted(tmp_path.rglob("*"))
    records = open_recorder(replace(context, comm=comm), tensorboard=True)
    assert isinstance(records, NullRecorder)
    records.event("started", 0)
    records.begin(0, 9)
    records.step(ROW)
    records.samples(1, 0, ["a"])
    records.close()
    assert sorted(tmp_path.rglob("*")) == before


def test_tensorboard_shows_the_same_numbers(context):
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
