import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsadml_dist.health.heartbeat import read_peer_statuses
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import read_jsonl

SCRIPT = str(Path(__file__).parent / "watchdog_ranks.py")
FAULT_STEP = 3
LIMIT = 2


@dataclass(frozen=True)
class Outcome:
    """The exit codes of a case's ranks, and the folder with their output."""

    folder: Path
    codes: list[int]

    @property
    def attempt(self):
        return RunFolder(self.folder / "run").attempt(1)

    def messages(self, rank):
        """Lines of a rank on stderr, without the warnings of libraries."""
        lines = (self.folder / f"stderr-{rank}").read_text().splitlines()
        return [line for line in lines if line.startswith("hsadml") or "Error" in line]

    @property
    def hangs(self):
        return [row for row in read_jsonl(self.attempt.events) if row["event"] == "hang"]


@pytest.fixture
def play(fork_server, tmp_path):
    """Run a case with W ranks; ``then(folder)`` runs concurrently."""

    def run(case, world, then=lambda folder: None):
        helper = threading.Thread(target=then, args=(tmp_path,))
        helper.start()
        job = {"script": SCRIPT, "folder": str(tmp_path), "world": world, "case": case, "preload": []}
        codes = fork_server.run(job)
        helper.join()
        return Outcome(tmp_path, codes)

    return run


def is_alive(pid):
    return Path(f"/proc/{pid}/stat").exists() and not is_in_state(pid, "Z")


def is_in_state(pid, letter):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == letter


def pid_of(folder, rank):
    path = folder / f"pid-{rank}"
    while not path.exists() or not path.read_text():
        time.sleep(0.01)
    return int(path.read_text())


def kill_when_its_peers_have_exited(world):
    """Return a helper that kills the last rank, which is suspended, when its peers have exited."""

    def then(folder):
        pids = [pid_of(folder, rank) for rank in range(world)]
        while any(is_alive(pid) for pid in pids[:-1]):
            time.sleep(0.02)
        os.kill(pids[-1], signal.SIGKILL)

    return then


def test_watchdog_does_not_disturb_a_healthy_run(play):
    outcome = play("calm", 2)
    assert outcome.codes == [0, 0]
    assert outcome.hangs == []
    assert [status.heartbeat.rank for status in read_peer_statuses(outcome.attempt, 2, 0)] == [0, 1]


@pytest.mark.parametrize("world", [4])
def test_suspended_rank_is_named_by_its_peers_which_exit(play, world):
    outcome = play("stopped", world, kill_when_its_peers_have_exited(world))
    assert outcome.codes == [70] * (world - 1) + [-signal.SIGKILL]
    [event] = outcome.hangs
    assert (event["ranks"], event["step"], event["stage"]) == ([world - 1], FAULT_STEP - 1, "step")
    for rank in range(world - 1):
        [line] = outcome.messages(rank)
        assert line.startswith(f"hsadml: rank {rank}: hang: step {FAULT_STEP} ")
        assert all(fact in line for fact in (f"{LIMIT} s", "stage step", "run.step_timeout_seconds"))
        assert f"rank {world - 1} " in line
        log = outcome.attempt.log(rank).read_text()
        assert 'watchdog_ranks.py", line' in log
        assert "in all_reduce" in log


def test_rank_resumed_after_its_successor_started_finds_the_run_locked(play):
    def wake(folder):
        pids = [pid_of(folder, rank) for rank in range(2)]
        while is_alive(pids[0]):
            time.sleep(0.02)
        RunFolder(folder / "run").attempt(2).path.mkdir()
        os.kill(pids[1], signal.SIGCONT)

    outcome = play("stopped", 2, wake)
    assert outcome.codes == [70, 70]  # the fork server of the tests maps any uncaught exception to 70
    assert re.search(r"RunLockedError: .*: attempt 2 .*attempt 1 ", outcome.messages(1)[-1])
    assert [event["ranks"] for event in outcome.hangs] == [[1]]


@pytest.mark.parametrize(("case", "stage"), [("asleep", "step"), ("data", "data")])
def test_busy_rank_is_named_by_all_ranks(play, case, stage):
    outcome = play(case, 3)
    assert outcome.codes == [70] * 3
    [event] = outcome.hangs
    assert event["ranks"] == [2]
    for rank in range(3):
        [line] = outcome.messages(rank)
        assert re.search(rf"rank 2 .*stage {stage} of step {FAULT_STEP} \(__main__, line", line)
    assert "in fail_as" in outcome.attempt.log(2).read_text()


@pytest.mark.parametrize("world", [1, 2])
def test_hang_that_holds_the_interpreter_lock_is_ended_by_the_external_watchdog(play, world):
    outcome = play("lock", world)
    assert outcome.codes == [70] * (world - 1) + [-signal.SIGABRT]
    [event] = outcome.hangs
    assert (event["ranks"], event["step"]) == ([world - 1], FAULT_STEP - 1)
    [line] = outcome.messages(world - 1)
    assert re.search(rf"rank {world - 1} .*stage step of step {FAULT_STEP}", line)
    log = outcome.attempt.log(world - 1).read_text()
    assert "Fatal Python error: Aborted" in log
    assert "in fail_as" in log


def test_time_while_suspended_does_not_count(play):
    def wake_late(folder):
        pid = pid_of(folder, 0)
        while not is_in_state(pid, "T"):
            time.sleep(0.01)
        time.sleep(LIMIT + 2)
        os.kill(pid, signal.SIGCONT)

    outcome = play("paused", 1, wake_late)
    assert outcome.codes == [0]
    assert outcome.hangs == []


def test_killed_peer_is_reported_in_one_line(play):
    outcome = play("killed", 3)
    assert outcome.codes == [70, 70, -signal.SIGKILL]
    for rank in range(2):
        line = outcome.messages(rank)[-1]
        assert re.search(rf"PeerLostError: .*at step {FAULT_STEP} \(stage step\).*connection (closed|reset)", line)
    assert outcome.hangs == []
