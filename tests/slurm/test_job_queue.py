"""The cached queue: shell scripts act as Slurm's commands and count their calls; the clock is set by hand."""

from __future__ import annotations

import datetime
import functools
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hsadml_dist.slurm import job_queue
from hsadml_dist.slurm.client import FORGOTTEN
from hsadml_dist.slurm.job_queue import KEEP_SECONDS, MAX_SCONTROL_QUERIES, REFRESH_SECONDS, query_jobs

STARTED = datetime.datetime(2026, 11, 23, 12)
LINE = f"12|12|RUNNING|{STARTED:%Y-%m-%dT%H:%M:%S}|n1|None"
QUERY = "from hsadml_dist.slurm.job_queue import query_queue; job = query_queue().find('12'); print(job and job.state)"
UNKNOWN_JOB = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


class FakeSlurm:
    """Slurm's commands as shell scripts that record each call, a cache folder and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls_file = folder, folder / "calls"
        (folder / "bin").mkdir()
        self.conf = folder / "slurm.conf"
        self.conf.touch()
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        self.env = {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache"), "SLURM_CONF": str(self.conf)}
        self.now = STARTED.timestamp() + 3600
        self.answer("squeue", f"echo '{LINE}'")
        self.answer("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
        self.answer("scontrol", UNKNOWN_JOB)

    def clock(self) -> float:
        return self.now

    def query(self, before: job_queue.QueueSnapshot | None = None, **more: object) -> job_queue.QueueSnapshot:
        return job_queue.query_queue(before, **({"env": self.env, "clock": self.clock} | more))

    @property
    def with_unlisted_jobs(self) -> Callable[..., job_queue.QueueSnapshot]:
        return functools.partial(job_queue.with_unlisted_jobs, env=self.env, clock=self.clock)

    def answer(self, name: str, body: str) -> None:
        program = self.folder / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.calls_file}\n{body}\n')
        program.chmod(0o755)

    def answer_squeue_after(self, event: Path) -> None:
        self.answer("squeue", f"until [ -e {event} ]; do sleep 0.02; done; echo '{LINE}'")

    def start_query(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", QUERY]
        return subprocess.Popen(command, env=os.environ | self.env, stdout=subprocess.PIPE, text=True)

    def wait_for_squeue(self) -> None:
        deadline = time.monotonic() + 60
        while not self.calls("squeue"):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def calls(self, name: str = "") -> list[str]:
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [line for line in lines if line.startswith(name)]

    @property
    def cache_file(self) -> Path:
        (path,) = (self.folder / "cache" / "hsadml").glob("squeue-*.json")
        return path


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


def state(queue: job_queue.QueueSnapshot, job: str) -> str | None:
    found = queue.find(job)
    return None if found is None else found.state


def test_query_asks_squeue_once_in_30_seconds(slurm: FakeSlurm) -> None:
    first = slurm.query()
    assert state(first, "12") == "RUNNING"
    slurm.now += REFRESH_SECONDS - 1
    assert slurm.query() == first
    assert len(slurm.calls()) == 1
    slurm.now += 1
    assert slurm.query().asked == slurm.now
    assert len(slurm.calls()) == 2


def test_query_asks_for_all_jobs_of_the_user_in_all_states(slurm: FakeSlurm) -> None:
    slurm.query()
    assert f"--user={os.getuid()}" in slurm.calls()[0]
    assert "--states=all" in slurm.calls()[0]


def test_query_asks_again_after_the_clock_was_set_back(slurm: FakeSlurm) -> None:
    slurm.query()
    slurm.now -= 1
    assert slurm.query().asked == slurm.now
    assert len(slurm.calls()) == 2


def test_concurrent_processes_share_one_squeue(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.answer_squeue_after(tmp_path / "go")
    running = [slurm.start_query() for _ in range(4)]
    slurm.wait_for_squeue()
    (tmp_path / "go").touch()
    assert [process.communicate(timeout=300)[0] for process in running] == ["RUNNING\n"] * 4
    assert len(slurm.calls("squeue")) == 1


def test_query_without_the_lock_returns_a_problem(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.answer_squeue_after(tmp_path / "go")
    other = slurm.start_query()
    slurm.wait_for_squeue()
    found = slurm.query(lock_seconds=0.2)
    assert found.answered is None
    assert found.problem is not None
    (tmp_path / "go").touch()
    assert other.communicate(timeout=300)[0] == "RUNNING\n"
    assert len(slurm.calls("squeue")) == 1


def test_fresh_query_ignores_the_cache(slurm: FakeSlurm) -> None:
    slurm.query()
    slurm.now += 1
    slurm.query(fresh=True)
    assert len(slurm.calls()) == 2


def test_record_cancelled_makes_the_next_query_ask_squeue(slurm: FakeSlurm) -> None:
    job_queue.record_cancelled(["12", "15_0"], slurm.env, slurm.clock)
    found = slurm.query()
    assert len(slurm.calls()) == 1
    assert (state(found, "12"), state(found, "15_0")) == ("RUNNING", "CANCELLED"), "squeue counts where it lists a job"
    slurm.now += 1
    assert state(slurm.query(fresh=True), "15_0") == "CANCELLED"


def test_failed_squeue_is_cached_with_the_last_answer(slurm: FakeSlurm) -> None:
    before = slurm.query()
    slurm.answer("squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    slurm.now += 1
    found = slurm.query(fresh=True)
    assert str(slurm.conf) in (found.problem or "")
    assert (found.answered, found.jobs) == (before.answered, before.jobs)
    assert slurm.query() == found
    assert slurm.with_unlisted_jobs(found, ["99"]) == found
    assert len(slurm.calls()) == 2


def test_cache_is_private_to_the_user(slurm: FakeSlurm) -> None:
    slurm.query()
    assert stat.S_IMODE(slurm.cache_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(slurm.cache_file.parent.stat().st_mode) == 0o700


def test_cache_belongs_to_one_cluster(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.query()
    other = tmp_path / "other.conf"
    other.touch()
    slurm.query(env=slurm.env | {"SLURM_CONF": str(other)})
    assert len(slurm.calls()) == 2
    os.utime(slurm.conf, (1, 1))  # as if the cluster had been started again
    slurm.query()
    assert len(slurm.calls()) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"uid": 0}', '{"uid": null, "conf": 1, "queue": {"jobs": [{}]}}'])
def test_damaged_cache_file_is_replaced(slurm: FakeSlurm, text: str) -> None:
    slurm.query()
    slurm.cache_file.write_text(text)
    assert state(slurm.query(), "12") == "RUNNING"
    assert json.loads(slurm.cache_file.read_text())["uid"] == os.getuid()


def test_query_without_a_cache_folder_uses_the_snapshot_of_the_process(slurm: FakeSlurm, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()  # a file where the folder should be
    found = slurm.query()
    assert slurm.query(found) == found
    assert len(slurm.calls()) == 1


def test_query_ignores_squeue_variables_of_the_user(slurm: FakeSlurm) -> None:
    slurm.answer("squeue", f'test -z "$SQUEUE_PARTITION$SQUEUE_FORMAT" && echo "{LINE}"')
    found = slurm.query(env=slurm.env | {"SQUEUE_PARTITION": "gpu", "SQUEUE_FORMAT": "%i"})
    assert state(found, "12") == "RUNNING"


def test_find_accepts_both_ids_of_an_element(slurm: FakeSlurm) -> None:
    slurm.answer("squeue", "echo '12_3|15|RUNNING|N/A|n1|None'")
    found = slurm.query()
    assert found.find("12_3") == found.find("15") is not None
    assert found.find("12") is None


def test_unlisted_jobs_come_from_one_sacct(slurm: FakeSlurm) -> None:
    slurm.answer("sacct", f"echo '7|7|NODE_FAIL|{STARTED:%Y-%m-%dT%H:%M:%S}|n1|0:0'")
    found = slurm.with_unlisted_jobs(slurm.query(), ["12", "7", "8"])
    assert (state(found, "7"), state(found, "8"), state(found, "12")) == ("NODE_FAIL", FORGOTTEN, "RUNNING")
    assert "--jobs=7,8" in slurm.calls("sacct")[0]
    again = slurm.with_unlisted_jobs(slurm.query(), ["7", "8"])
    assert state(again, "7") == "NODE_FAIL"
    slurm.now += 1
    assert state(slurm.with_unlisted_jobs(slurm.query(fresh=True), ["7", "8"]), "8") == FORGOTTEN
    assert len(slurm.calls("sacct")) == 1
    assert slurm.calls("scontrol") == []


def test_unlisted_jobs_are_dropped_from_the_cache_after_a_day(slurm: FakeSlurm) -> None:
    slurm.answer("sacct", f"echo '7|7|NODE_FAIL|{STARTED:%Y-%m-%dT%H:%M:%S}|n1|0:0'")
    slurm.with_unlisted_jobs(slurm.query(), ["7"])
    slurm.now = STARTED.timestamp() + KEEP_SECONDS - 1
    slurm.with_unlisted_jobs(slurm.query(fresh=True), ["7"])
    assert len(slurm.calls("sacct")) == 1
    slurm.now += 2
    slurm.query(fresh=True)
    slurm.with_unlisted_jobs(slurm.query(), ["7"])
    assert len(slurm.calls("sacct")) == 2


def test_unlisted_jobs_come_from_a_few_scontrol_without_accounts(slurm: FakeSlurm) -> None:
    slurm.answer("scontrol", 'case "$*" in *"job 7") echo "JobId=7 JobState=TIMEOUT ExitCode=0:15";; *) false;; esac')
    found = slurm.with_unlisted_jobs(slurm.query(), ["7"])
    job = found.find("7")
    assert job is not None
    assert (job.state, job.exit_code) == ("TIMEOUT", "0:15")
    slurm.answer("scontrol", "echo 'Job 100_1 not found'; exit 1")
    found = slurm.with_unlisted_jobs(found, [str(number) for number in range(100, 200)])
    assert len(slurm.calls("scontrol")) == 1 + MAX_SCONTROL_QUERIES
    assert state(found, "100") == FORGOTTEN
    assert found.find("199") is None


def test_unlisted_job_that_still_runs_is_not_cached_for_the_next_squeue(slurm: FakeSlurm) -> None:
    slurm.answer("scontrol", 'echo "JobId=7 JobState=RUNNING"')
    slurm.with_unlisted_jobs(slurm.query(), ["7"])
    assert state(slurm.query(), "7") == "RUNNING"
    slurm.now += 1
    assert slurm.query(fresh=True).find("7") is None


def test_query_jobs_bypasses_the_cache(slurm: FakeSlurm) -> None:
    slurm.query()
    assert query_jobs(["12", "13"], slurm.env)["12"].state == "RUNNING"
    assert "--jobs=12,13" in slurm.calls()[-1]
    slurm.answer("squeue", UNKNOWN_JOB)
    assert query_jobs(["13"], slurm.env) == {}
