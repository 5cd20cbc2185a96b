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
from hsadml_dist.launch.cli import cmd_status as module
from hsadml_dist.launch.cli.cmd_status import StatusChanges, fit_rows
from hsadml_dist.run.run_state import RunState
from hsadml_dist.slurm.run_status import StatusRow
from tests.run.run_factory import add_events, add_rows, checkpoint, make_attempt, make_run, stopped

WATCH = [sys.executable, "-m", "hsadml_dist.launch.cli", "watch"]
ROOT = Path(cli.__file__).parents[3]
NOW = 1_800_000_000.0
RUNNING = StatusRow(
    run=Path("/r/one"), phase="running", text="running", over=False, state=RunState(phase="running", step=3)
)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_piped_it_says_what_changes_and_ends_with_the_run(capsys, monkeypatch):
    run = make_run(Path("one"), steps=40)
    attempt = make_attempt(run, steps=[1])
    made = iter(
        [
            lambda: add_rows(attempt, [2]),
            lambda: add_events(attempt, stopped(2, "rank 0: SIGTERM")),
            lambda: make_attempt(run, steps=[40], events=[checkpoint(40, 2), {"event": "finished", "step": 40}]),
        ]
    )
    # A stopped run is over, unless something of it goes on: here its neighbour.
    other = make_attempt(make_run(Path("two")), steps=[1])

    def pause(seconds):
        assert seconds == module.EVERY_SECONDS
        step = next(made, None)
        if step is None:
            add_events(other, [{"event": "finished", "step": 1}])
        else:
            step()

    monkeypatch.setattr(module.time, "sleep", pause)
    looks = module._looks
    monkeypatch.setattr(module, "_looks", lambda folders: looks(folders, pause))
    assert cli.main(["watch", "one", "two"]) == 0
    said = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert [line.partition(",")[0] for line in said] == [
        "one: running",
        "two: running",
        "one: stopped",
        "one: told to stop by SIGTERM (rank 0)",
        "one: to go on: hsadml train one/config.yaml --run one --nproc 2",
        "one: finished",
        "two: finished",
    ]


def test_steps_alone_are_told_every_30_seconds():
    changes = StatusChanges()
    assert len(changes.lines([RUNNING], NOW)) == 1
    assert changes.lines([RUNNING], NOW + 29) == []
    (line,) = changes.lines([RUNNING], NOW + 31)
    assert line.endswith("/r/one: running, step 3")
    over = replace(RUNNING, phase="finished", text="finished", over=True)
    assert len(changes.lines([over], NOW + 32)) == 1
    assert changes.lines([over], NOW + 1000) == []


def test_silence_that_grows_is_no_news():
    changes = StatusChanges()
    silent = [replace(RUNNING, phase="silent", text=f"silent for {age} s") for age in (70, 72)]
    assert len(changes.lines(silent[:1], NOW)) == 1
    assert changes.lines(silent[1:], NOW + 2) == []


def test_trouble_is_told_once():
    changes = StatusChanges()
    assert changes.remarks(["squeue failed; jobs are shown as 5 s ago"]) == [
        "hsadml: squeue failed; jobs are shown as 5 s ago"
    ]
    assert changes.remarks(["squeue failed; jobs are shown as 35 s ago"]) == []
    assert changes.remarks([]) == []
    assert len(changes.remarks(["squeue failed; jobs are shown as 65 s ago"])) == 1


def test_of_too_many_runs_those_that_are_over_make_room():
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


def test_not_all_finished_is_1(capsys):
    make_attempt(make_run(Path("one")), events=[{"event": "failed", "reason": "no space", "exit_code": 1}])
    assert cli.main(["watch", "one"]) == 1
    assert "one: no space" in capsys.readouterr().out


def test_nothing_to_watch_is_refused(capsys):
    assert cli.main(["watch"]) == 2
    assert capsys.readouterr().err == "hsadml: no runs under runs/: name run folders\n"


def test_ctrl_c_is_quiet():
    make_attempt(make_run(Path("one")), steps=[1])
    process = subprocess.Popen([*WATCH, "one"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "one: running" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_on_a_terminal_the_table_is_drawn_in_place():
    attempt = make_attempt(make_run(Path("one")), steps=[1])
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
    process = subprocess.Popen([*WATCH, "one"], stdin=end, stdout=end, stderr=end, env=os.environ | {"TERM": "xterm"})
    os.close(end)
    seen = b""
    deadline = time.monotonic() + 30
    while b"running" not in seen and time.monotonic() < deadline:
        seen += os.read(terminal, 4096)
    add_events(attempt, [{"event": "finished", "step": 1}])
    assert process.wait(30) == 0
    while True:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    assert b"finished" in seen
    assert b"\x1b[1A" in seen, "the cursor goes back up"
