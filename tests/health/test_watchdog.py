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
STRIKE = 3
LIMIT = 2


@dataclass(frozen=True)
class Outcome:
    """How the ranks of a case ended."""

    folder: Path
    codes: list[int]

    @property
    def attempt(self):
        return RunFolder(self.folder / "run").attempt(1)

    def said(self, rank):
        """What a rank said on stderr, without the warnings of libraries."""
        lines = (self.folder / f"stderr-{rank}").read_text().splitlines()
        return [line for line in lines if line.startswith("hsadml") or "Error" in line]

    @property
    def hangs(self):
        return [row for row in read_jsonl(self.attempt.events) if row["event"] == "hang"]


@pytest.fixture
def play(nursery, tmp_path):
    """Run a case in W ranks; ``then`` is done beside it, with the folder."""

    def run(case, world, then=lambda folder: None):
        helper = threading.Thread(target=then, args=(tmp_path,))
        helper.start()
        job = {"script": SCRIPT, "folder": str(tmp_path), "world": world, "case": case, "preload": []}
        codes = nursery.run(job)
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


def kill_once_its_peers_are_gone(world):
    """Return what ends the last rank, which is stopped and could not end otherwise."""

    def then(folder):
        pids = [pid_of(folder, rank) for rank in range(world)]
        while any(is_alive(pid) for pid in pids[:-1]):
            time.sleep(0.02)
        os.kill(pids[-1], signal.SIGKILL)

    return then


def test_a_calm_run_ends_as_if_nobody_watched(play):
    outcome = play("calm", 2)
    assert outcome.codes == [0, 0]
    assert outcome.hangs == []
    assert [seen.sign.rank for seen in read_peer_statuses(outcome.attempt, 2, 0)] == [0, 1]


@pytest.mark.parametrize("world", [4])
def test_a_stopped_rank_is_named_by_its_peers_who_leave(play, world):
    outcome = play("stopped", world, kill_once_its_peers_are_gone(world))
    assert outcome.codes == [70] * (world - 1) + [-signal.SIGKILL]
    [event] = outcome.hangs
    assert (event["ranks"], event["step"], event["stage"]) == ([world - 1], STRIKE - 1, "step")
    for rank in range(world - 1):
        [line] = outcome.said(rank)
        assert line.startswith(f"hsadml: rank {rank}: hang: step {STRIKE} has not ended after {LIMIT} s (stage step")
        assert f"rank {world - 1} has given no sign of life for" in line
        log = outcome.attempt.log(rank).read_text()
        assert 'watchdog_ranks.py", line' in log
        assert "in all_reduce" in log


def test_a_rank_that_wakes_after_its_successor_has_started_says_so(play):
    def wake(folder):
        pids = [pid_of(folder, rank) for rank in range(2)]
        while is_alive(pids[0]):
            time.sleep(0.02)
        RunFolder(folder / "run").attempt(2).path.mkdir()
        os.kill(pids[1], signal.SIGCONT)

    outcome = play("stopped", 2, wake)
    assert outcome.codes == [70, 70]  # the second one from the test's nursery: it knows no exit codes
    assert re.search(r"RunLockedError: .*: attempt 2 has started; attempt 1 writes nothing more$", outcome.said(1)[-1])
    assert [event["ranks"] for event in outcome.hangs] == [[1]]


@pytest.mark.parametrize(("case", "stage"), [("asleep", "step"), ("data", "data")])
def test_a_rank_that_is_busy_while_the_others_wait_is_named_by_all(play, case, stage):
    outcome = play(case, 3)
    assert outcome.codes == [70] * 3
    [event] = outcome.hangs
    assert event["ranks"] == [2]
    for rank in range(3):
        [line] = outcome.said(rank)
        assert f"rank 2 is busy in stage {stage} of step {STRIKE} (__main__, line" in line
    assert "in strike" in outcome.attempt.log(2).read_text()


@pytest.mark.parametrize("world", [1, 2])
def test_a_hang_that_keeps_the_interpreters_lock_ends_as_well(play, world):
    outcome = play("lock", world)
    assert outcome.codes == [70] * (world - 1) + [-signal.SIGABRT]
    [event] = outcome.hangs
    assert (event["ranks"], event["step"]) == ([world - 1], STRIKE - 1)
    [line] = outcome.said(world - 1)
    assert f"rank {world - 1} lets no Python code run in stage step of step {STRIKE}" in line
    log = outcome.attempt.log(world - 1).read_text()
    assert "Fatal Python error: Aborted" in log
    assert "in strike" in log


def test_time_during_which_the_process_was_stopped_does_not_count(play):
    def wake_late(folder):
        pid = pid_of(folder, 0)
        while not is_in_state(pid, "T"):
            time.sleep(0.01)
        time.sleep(LIMIT + 2)
        os.kill(pid, signal.SIGCONT)

    outcome = play("paused", 1, wake_late)
    assert outcome.codes == [0]
    assert outcome.hangs == []


def test_a_peers_death_is_one_line(play):
    outcome = play("killed", 3)
    assert outcome.codes == [70, 70, -signal.SIGKILL]
    for rank in range(2):
        line = outcome.said(rank)[-1]
        place = f"noticed at step {STRIKE} \\(stage step\\): connection (closed|reset)"
        assert re.search(f"PeerLostError: another rank is gone or hangs, {place}", line)
    assert outcome.hangs == []
