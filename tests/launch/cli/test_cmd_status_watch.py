import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hsadml_dist.launch import cli
from hsadml_dist.launch.cli import cmd_status
from hsadml_dist.launch.cli.cmd_status import Snapshot, StatusChanges, fit_rows
from hsadml_dist.run.run_state import RunState
from hsadml_dist.slurm.job_queue import QueueSnapshot
from hsadml_dist.slurm.run_status import StatusRow
from tests.launch.cli.terminal_output import read_terminal
from tests.run.run_factory import add_events, add_rows, checkpoint, make_attempt, make_run, stopped

WATCH = [sys.executable, "-m", "hsadml_dist.launch.cli", "watch"]
ROOT = Path(cli.__file__).parents[3]
NOW = 1_800_000_000.0
RUNNING = StatusRow(
    run=Path("/r/one"), phase="running", text="running", over=False, state=RunState(phase="running", step=3)
)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_watch_off_a_terminal_prints_changes_until_all_runs_have_ended(capsys, monkeypatch):
    run = make_run(Path("one"), steps=40)
    attempt = make_attempt(run, steps=[1])
    changes = iter(
        [
            lambda: add_rows(attempt, [2]),
            lambda: add_events(attempt, stopped(2, "rank 0: SIGTERM")),
            lambda: make_attempt(run, steps=[40], events=[checkpoint(40, 2), {"event": "finished", "step": 40}]),
        ]
    )
    # A stopped run has ended, but its neighbour keeps the command running.
    other = make_attempt(make_run(Path("two")), steps=[1])

    def pause(seconds):
        assert seconds == cmd_status.WATCH_SECONDS
        next(changes, lambda: add_events(other, [{"event": "finished", "step": 1}]))()

    monkeypatch.setattr(cmd_status.time, "sleep", pause)
    assert cli.main(["watch", "one", "two"]) == 0
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    states = [line.partition(",")[0] for line in lines if line.partition(",")[2]]
    assert states == ["one: running", "two: running", "one: stopped", "one: finished", "two: finished"]
    notes = [line for line in lines if line.partition(",")[0] not in states]
    assert "SIGTERM" in notes[0] and notes[1].endswith("hsadml train one/config.yaml --run one --nproc 2")


def snapshot(row, now, queue=None):
    return Snapshot([row], queue, now)


def test_changed_step_alone_is_printed_every_30_seconds():
    changes = StatusChanges()
    assert len(changes.lines(snapshot(RUNNING, NOW))) == 1
    assert changes.lines(snapshot(RUNNING, NOW + 29)) == []
    (line,) = changes.lines(snapshot(RUNNING, NOW + 31))
    assert line.endswith("/r/one: running, step 3")
    over = replace(RUNNING, phase="finished", text="finished", over=True)
    assert len(changes.lines(snapshot(over, NOW + 32))) == 1
    assert changes.lines(snapshot(over, NOW + 1000)) == []


def test_growing_silence_is_not_a_change():
    changes = StatusChanges()
    silent = [replace(RUNNING, phase="silent", text=f"silent for {age} s") for age in (70, 72)]
    assert len(changes.lines(snapshot(silent[0], NOW))) == 1
    assert changes.lines(snapshot(silent[1], NOW + 2)) == []


def test_queue_problem_is_printed_once():
    changes = StatusChanges()
    over = replace(RUNNING, phase="finished", text="finished", over=True)
    changes.lines(snapshot(over, NOW))

    def lines(seconds, problem):
        queue = QueueSnapshot(asked=NOW + seconds, answered=NOW, problem=problem)
        return changes.lines(snapshot(over, NOW + seconds, queue))

    (line,) = lines(5, "squeue failed")
    assert line.startswith("hsadml: squeue failed")
    assert lines(35, "squeue failed") == [], "only the age of the answer has changed"
    assert lines(45, None) == []
    assert len(lines(65, "squeue failed")) == 1


def test_fit_rows_omits_ended_runs_first():
    rows = [replace(RUNNING, run=Path(f"/r/{number}")) for number in range(4)]
    over = [
        replace(RUNNING, run=Path(f"/r/over-{number}"), phase="finished", text="finished", over=True)
        for number in range(20)
    ]
    lines = fit_rows([*over, *rows], NOW, 80, 10)
    assert len(lines) == 6
    assert [line.split()[0] for line in lines[1:5]] == ["/r/0", "/r/1", "/r/2", "/r/3"]
    assert lines[5] == "24 runs: 20 finished, 4 running"
    assert len(fit_rows([*over, *rows], NOW, 80, 4)) == 4
    assert len(fit_rows(rows, NOW, 80, 50)) == 6


def test_watch_returns_1_unless_all_runs_finished(capsys):
    make_attempt(make_run(Path("one")), events=[{"event": "failed", "reason": "no space", "exit_code": 1}])
    assert cli.main(["watch", "one"]) == 1
    assert "one: no space" in capsys.readouterr().out


def test_watch_without_runs_is_a_usage_error(capsys):
    assert cli.main(["watch"]) == 2
    message = capsys.readouterr().err
    assert "runs/" in message and message.count("\n") == 1


def test_watch_ends_quietly_on_ctrl_c():
    make_attempt(make_run(Path("one")), steps=[1])
    process = subprocess.Popen([*WATCH, "one"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "one: running" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, "", "")


def test_watch_on_a_terminal_updates_the_table_in_place():
    attempt = make_attempt(make_run(Path("one")), steps=[1])
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
    process = subprocess.Popen([*WATCH, "one"], stdin=end, stdout=end, stderr=end, env=os.environ | {"TERM": "xterm"})
    os.close(end)
    seen = b""
    deadline = time.monotonic() + 120
    while b"running" not in seen and time.monotonic() < deadline:
        seen += os.read(terminal, 4096)
    add_events(attempt, [{"event": "finished", "step": 1}])
    assert process.wait(120) == 0
    seen += read_terminal(terminal)
    assert b"finished" in seen
    assert b"\x1b[1A" in seen, "the cursor moves up"
