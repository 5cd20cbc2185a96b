import os
import pty
import subprocess
import sys

from hsadml_dist.launch.cli import terminal as module
from hsadml_dist.launch.cli.terminal import progress

SHOW = """
from hsadml_dist.launch.cli.terminal import progress
with progress("slices") as show:
    for done in range(4):
        show(done, 3)
"""


def test_off_a_terminal_a_plain_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 65.0, 65.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("slices") as show:
        for done in (1, 2, 3, 4):
            show(done, 9)
    told = capsys.readouterr()
    assert told.err == "2 of 9 slices\n4 of 9 slices\n"
    assert told.out == ""


def test_on_a_terminal_a_bar_that_goes_away():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", SHOW], stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert process.stdout.read() == b""
    process.stdout.close()
    assert b"slices" in shown and b"3/3" in shown
    assert b"\x1b[2K" in shown
