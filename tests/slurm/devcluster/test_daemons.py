"""Daemons: processes identified by pid and start time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm.devcluster import daemons
from hsadml_dist.slurm.devcluster.daemons import Daemon

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"

HANG_SECONDS = 180


def spawn(tmp_path: Path, *argv: str) -> Daemon:
    return daemons.spawn("test", argv, output=tmp_path / "out", env=os.environ)


def test_spawn_starts_a_session_with_a_log(tmp_path: Path) -> None:
    daemon = spawn(tmp_path, "/bin/sh", "-c", "echo hello; exec sleep 60")
    try:
        assert daemon.alive
        assert os.getsid(daemon.pid) == daemon.pid
        assert daemons.wait_until(lambda: (tmp_path / "out").read_text() == "hello\n", seconds=HANG_SECONDS)
    finally:
        daemons.kill([daemon])
    assert not daemon.alive
    assert not Path(f"/proc/{daemon.pid}").exists(), "it was left as a zombie"


def test_zombie_counts_as_dead() -> None:
    child = subprocess.Popen(["/bin/true"])
    assert daemons.wait_until(lambda: daemons.process_start_time(child.pid) is None, seconds=HANG_SECONDS)
    assert Path(f"/proc/{child.pid}").exists()
    child.wait()


def test_kill_spares_a_later_process_with_the_same_pid() -> None:
    started = daemons.process_start_time(os.getpid())
    assert started is not None
    impostor = Daemon(name="x", pid=os.getpid(), started=started - 1)
    assert not impostor.alive
    daemons.kill([impostor])  # would end this very process


def test_stop_kills_a_process_that_ignores_sigterm(tmp_path: Path) -> None:
    daemon = spawn(tmp_path, sys.executable, "-c", STUBBORN)
    assert daemons.wait_until(lambda: "up" in (tmp_path / "out").read_text(), seconds=HANG_SECONDS)
    begin = time.monotonic()
    daemons.stop([daemon], patience=0.3)
    assert not daemon.alive
    assert time.monotonic() - begin >= 0.3


def test_spawn_resets_signals_that_the_caller_ignores(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        daemon = spawn(tmp_path, "/bin/sleep", "3600")
    finally:
        signal.signal(signal.SIGTERM, before)
    daemons.send(daemon, signal.SIGTERM)
    assert daemons.wait_until(lambda: not daemon.alive, seconds=HANG_SECONDS)
    daemons.stop([daemon])


def test_kill_tree_ends_all_descendants(tmp_path: Path) -> None:
    root = spawn(tmp_path, "/bin/sh", "-c", "sh -c 'sleep 61 & wait' & wait")
    assert daemons.wait_until(lambda: len(daemons.descendants([root.pid])) == 3, seconds=HANG_SECONDS)
    pids = daemons.descendants([root.pid])
    daemons.kill_tree(root)
    assert daemons.wait_until(lambda: not any(daemons.process_start_time(pid) for pid in pids), seconds=HANG_SECONDS)


def test_find_tool_names_a_missing_program() -> None:
    with pytest.raises(ClusterError, match="no-such-daemon"):
        daemons.find_tool("no-such-daemon")
