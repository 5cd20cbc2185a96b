import os
import pty
import subprocess
import sys
from pathlib import Path

from hsadml_dist.launch.cli import terminal
from hsadml_dist.launch.cli.terminal import align_columns, display_path, progress
from tests.launch.cli.terminal_output import read_terminal

SHOW = """
from hsadml_dist.launch.cli.terminal import progress
with progress("slices") as show:
    for done in range(4):
        show(done, 3)
"""


def test_align_columns_to_the_right_except_those_named():
    rows = [("name", "n", "text"), ("a", "10", "x"), ("longer", "9", "")]
    assert align_columns(rows, left=(0, 2)) == ["name     n  text", "a       10  x", "longer   9"]
    assert align_columns(rows[:2]) == ["name   n  text", "   a  10     x"]


def test_display_path_is_relative_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert display_path(tmp_path / "runs" / "a") == "runs/a"
    assert display_path(Path("runs")) == "runs"
    assert display_path(tmp_path.parent) == str(tmp_path.parent)


def test_progress_off_a_terminal_prints_a_line_every_30_seconds(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 65.0, 65.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with progress("slices") as show:
        for done in (1, 2, 3, 4):
            show(done, 9)
    printed = capsys.readouterr()
    assert printed.err == "2 of 9 slices\n4 of 9 slices\n"
    assert printed.out == ""


def test_progress_on_a_terminal_is_a_bar_that_is_removed():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", SHOW], stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    shown = read_terminal(ours)
    assert process.wait(timeout=300) == 0
    assert process.stdout.read() == b""
    process.stdout.close()
    assert b"slices" in shown and b"3/3" in shown
    assert b"\x1b[2K" in shown
