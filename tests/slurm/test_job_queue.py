"""What is kept of squeue's answers: programs in a folder stand for Slurm's and count how often they are asked."""

import json
import os
import stat
import subprocess
import sys
import time

import pytest

from hsadml_dist.slurm import job_queue as queue
from hsadml_dist.slurm.client import FORGOTTEN
from hsadml_dist.slurm.job_queue import query_jobs, query_queue, record_cancelled, with_unlisted_jobs

LINE = "12|12|RUNNING|2026-11-23T12:00:00|n1|None"


class Slurm:
    """Slurm's commands as shell scripts that note each call."""

    def __init__(self, folder):
        self.folder, self.calls_file = folder, folder / "calls"
        (folder / "bin").mkdir()
        self.conf = folder / "slurm.conf"
        self.conf.touch()
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        self.env = {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache"), "SLURM_CONF": str(self.conf)}
        self.answers("squeue", f"echo '{LINE}'")
        self.answers("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
        self.answers("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")

    def answers(self, name, body):
        program = self.folder / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.calls_file}\n{body}\n')
        program.chmod(0o755)

    def calls(self, name=""):
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [line for line in lines if line.startswith(name)]

    @property
    def kept(self):
        (path,) = (self.folder / "cache" / "hsadml").glob("squeue-*.json")
        return path


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


def test_squeue_is_asked_once_in_30_seconds_for_all_of_the_users_jobs(slurm, monkeypatch):
    first = query_queue(env=slurm.env)
    assert first.find("12").state == "RUNNING"
    assert [query_queue(env=slurm.env) for _ in range(3)] == [first] * 3
    assert len(slurm.calls()) == 1
    assert f"--user={os.getuid()}" in slurm.calls()[0]
    assert "--states=all" in slurm.calls()[0]
    later = time.time() + queue.REFRESH_SECONDS
    monkeypatch.setattr(queue.time, "time", lambda: later)
    assert query_queue(env=slurm.env).asked == later
    assert len(slurm.calls()) == 2


def test_other_processes_at_the_same_moment_wait_for_the_one_that_asks(slurm):
    slurm.answers("squeue", f"sleep 0.5; echo '{LINE}'")
    program = "from hsadml_dist.slurm.job_queue import look; print(look().find('12').state)"
    running = [
        subprocess.Popen([sys.executable, "-c", program], env=os.environ | slurm.env, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=30)[0] for process in running] == ["RUNNING\n"] * 4
    assert len(slurm.calls("squeue")) == 1


def test_who_waits_too_long_goes_without(slurm, monkeypatch):
    slurm.answers("squeue", "sleep 1")
    monkeypatch.setattr(queue, "WAIT_SECONDS", 0.2)
    program = "from hsadml_dist.slurm.job_queue import look; look()"
    other = subprocess.Popen([sys.executable, "-c", program], env=os.environ | slurm.env)
    while not slurm.calls("squeue"):
        time.sleep(0.01)
    found = query_queue(env=slurm.env)
    assert (found.answered, found.problem) == (None, "another process waits for squeue's answer")
    assert other.wait(30) == 0
    assert len(slurm.calls("squeue")) == 1


def test_fresh_asks_at_once(slurm):
    query_queue(env=slurm.env)
    query_queue(env=slurm.env, fresh=True)
    assert len(slurm.calls()) == 2


def test_after_a_cancellation_the_next_look_asks_and_squeue_knows_better_what_it_names(slurm):
    record_cancelled(["12", "15_0"], slurm.env)
    found = query_queue(env=slurm.env)
    assert len(slurm.calls()) == 1
    assert (found.find("12").state, found.find("15_0").state) == ("RUNNING", "CANCELLED")
    assert query_queue(env=slurm.env, fresh=True).find("15_0").state == "CANCELLED"


def test_a_controller_that_does_not_answer_is_left_in_peace_too(slurm):
    before = query_queue(env=slurm.env)
    slurm.answers("squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    found = query_queue(env=slurm.env, fresh=True)
    assert "its controller does not answer" in found.problem
    assert (found.answered, found.jobs) == (before.answered, before.jobs)
    assert query_queue(env=slurm.env) == found
    assert len(slurm.calls()) == 2
    assert with_unlisted_jobs(found, ["99"], slurm.env) == found
    assert len(slurm.calls()) == 2


def test_what_is_kept_is_the_users_alone_and_each_clusters_own(slurm, tmp_path):
    query_queue(env=slurm.env)
    assert stat.S_IMODE(slurm.kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(slurm.kept.parent.stat().st_mode) == 0o700
    other = tmp_path / "other.conf"
    other.touch()
    query_queue(env=slurm.env | {"SLURM_CONF": str(other)})
    assert len(slurm.calls()) == 2
    os.utime(slurm.conf, (1, 1))  # the cluster came up anew
    query_queue(env=slurm.env)
    assert len(slurm.calls()) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"uid": 0}', '{"uid": null, "conf": 1, "queue": {"jobs": [{}]}}'])
def test_a_spoilt_file_is_as_none(slurm, text):
    query_queue(env=slurm.env)
    slurm.kept.write_text(text)
    assert query_queue(env=slurm.env).find("12") is not None
    assert json.loads(slurm.kept.read_text())["uid"] == os.getuid()


def test_without_a_place_for_files_a_process_still_asks_once_only(slurm, tmp_path):
    (tmp_path / "cache").touch()  # a file where the folder should be
    found = query_queue(env=slurm.env)
    assert query_queue(found, env=slurm.env) == found
    assert len(slurm.calls()) == 1


def test_settings_of_the_user_hide_no_jobs(slurm):
    slurm.answers("squeue", f'test -z "$SQUEUE_PARTITION$SQUEUE_FORMAT" && echo "{LINE}"')
    found = query_queue(env=slurm.env | {"SQUEUE_PARTITION": "gpu", "SQUEUE_FORMAT": "%i"})
    assert found.find("12").state == "RUNNING"


def test_of_an_elements_two_names_either_finds_it(slurm):
    slurm.answers("squeue", "echo '12_3|15|RUNNING|N/A|n1|None'")
    found = query_queue(env=slurm.env)
    assert found.find("12_3") == found.find("15") is not None
    assert found.find("12") is None


def test_accounts_are_asked_once_for_all_that_squeue_has_forgotten(slurm):
    slurm.answers("sacct", "echo '7|7|NODE_FAIL|2026-11-23T12:00:00|n1|0:0'")
    found = with_unlisted_jobs(query_queue(env=slurm.env), ["12", "7", "8"], slurm.env)
    assert (found.find("7").state, found.find("8").state, found.find("12").state) == ("NODE_FAIL", FORGOTTEN, "RUNNING")
    assert "--jobs=7,8" in slurm.calls("sacct")[0]
    again = with_unlisted_jobs(query_queue(env=slurm.env), ["7", "8"], slurm.env)
    assert again.find("7").state == "NODE_FAIL"
    assert (
        with_unlisted_jobs(query_queue(env=slurm.env, fresh=True), ["7", "8"], slurm.env).find("8").state == FORGOTTEN
    )
    assert len(slurm.calls("sacct")) == 1
    assert slurm.calls("scontrol") == []


def test_without_accounts_scontrol_is_asked_for_a_few_jobs(slurm):
    slurm.answers("scontrol", 'case "$*" in *"job 7") echo "JobId=7 JobState=TIMEOUT ExitCode=0:15";; *) false;; esac')
    found = with_unlisted_jobs(query_queue(env=slurm.env), ["7"], slurm.env)
    assert (found.find("7").state, found.find("7").exit_code) == ("TIMEOUT", "0:15")
    many = [str(number) for number in range(100, 200)]
    slurm.answers("scontrol", "echo 'Job 100_1 not found'; exit 1")
    found = with_unlisted_jobs(found, many, slurm.env)
    assert len(slurm.calls("scontrol")) == 1 + queue.MAX_SCONTROL_QUERIES
    assert found.find("100").state == FORGOTTEN
    assert found.find("199") is None


def test_a_job_of_another_user_that_still_runs_is_asked_for_again(slurm):
    slurm.answers("scontrol", 'echo "JobId=7 JobState=RUNNING"')
    with_unlisted_jobs(query_queue(env=slurm.env), ["7"], slurm.env)
    assert query_queue(env=slurm.env).find("7").state == "RUNNING"
    assert query_queue(env=slurm.env, fresh=True).find("7") is None


def test_some_jobs_can_be_asked_for_past_what_is_kept(slurm):
    query_queue(env=slurm.env)
    assert query_jobs(["12", "13"], slurm.env)["12"].state == "RUNNING"
    assert "--jobs=12,13" in slurm.calls()[-1]
    slurm.answers("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert query_jobs(["13"], slurm.env) == {}
