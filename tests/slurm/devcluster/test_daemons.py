"""Processes that are known by pid and start time."""

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


def spawn(tmp_path: Path, *argv: str) -> Daemon:
    return daemons.spawn("test", argv, output=tmp_path / "out", env=os.environ)


def test_a_daemon_has_a_session_and_a_log_of_its_own(tmp_path: Path) -> None:
    daemon = spawn(tmp_path, "/bin/sh", "-c", "echo hello; exec sleep 60")
    try:
        assert daemon.alive
        assert os.getsid(daemon.pid) == daemon.pid
        assert daemons.wait_until(lambda: (tmp_path / "out").read_text() == "hello\n", seconds=5)
    finally:
        daemons.kill([daemon])
    assert not daemon.alive
    assert not Path(f"/proc/{daemon.pid}").exists(), "it was left as a zombie"


def test_a_zombie_counts_as_dead() -> None:
    child = subprocess.Popen(["/bin/true"])
    assert daemons.wait_until(lambda: daemons.process_start_time(child.pid) is None, seconds=5)
    assert Path(f"/proc/{child.pid}").exists()
    child.wait()


def test_a_later_process_with_the_same_pid_is_not_the_daemon() -> None:
    started = daemons.process_start_time(os.getpid())
    assert started is not None
    impostor = Daemon(name="x", pid=os.getpid(), started=started - 1)
    assert not impostor.alive
    daemons.kill([impostor])  # would end this very process


def test_stop_is_patient_first_and_then_is_not(tmp_path: Path) -> None:
    daemon = spawn(tmp_path, sys.executable, "-c", STUBBORN)
    assert daemons.wait_until(lambda: "up" in (tmp_path / "out").read_text(), seconds=10)
    begin = time.monotonic()
    daemons.stop([daemon], patience=0.3)
    assert not daemon.alive
    assert time.monotonic() - begin >= 0.3


def test_signals_ignored_by_the_caller_are_not_ignored_by_the_daemon(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        daemon = spawn(tmp_path, "/bin/sleep", "60")
    finally:
        signal.signal(signal.SIGTERM, before)
    begin = time.monotonic()
    daemons.stop([daemon], patience=5)
    assert time.monotonic() - begin < 4


def test_a_tree_is_ended_with_all_its_branches(tmp_path: Path) -> None:
    root = spawn(tmp_path, "/bin/sh", "-c", "sh -c 'sleep 61 & wait' & wait")
    assert daemons.wait_until(lambda: len(daemons.descendants([root.pid])) == 3, seconds=5)
    pids = daemons.descendants([root.pid])
    daemons.kill_tree(root)
    assert daemons.wait_until(lambda: not any(daemons.process_start_time(pid) for pid in pids), seconds=5)


def test_a_missing_tool_is_named() -> None:
    with pytest.raises(ClusterError, match="no-such-daemon is not installed"):
        daemons.find_tool("no-such-daemon")
