"""The status of runs, from run folders and answers of Slurm that are written by hand."""

import json
import os

import pytest

from hsadml_dist.errors import ExitCode
from hsadml_dist.slurm import run_status
from hsadml_dist.slurm.client import FORGOTTEN, SlurmJob
from hsadml_dist.slurm.job_queue import QueueSnapshot
from hsadml_dist.slurm.job_records import JOBS_FILE, DeclineReason
from hsadml_dist.slurm.run_status import read_status
from tests.run.run_factory import checkpoint, make_attempt, make_run, stopped

NOW = 1_800_000_000.0


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose jobs Slurm has forgotten unless squeue lists them."""

    def forget(queue, jobs):
        others = {name: SlurmJob(job=name, state=FORGOTTEN) for name in jobs if queue.find(name) is None}
        return QueueSnapshot(
            asked=queue.asked, answered=queue.answered, jobs=queue.jobs, others={**queue.others, **others}
        )

    monkeypatch.setattr(run_status, "with_unlisted_jobs", forget)
    return make_run(tmp_path / "run")


def submit(run, job, *, at, requeue="chain", after=None):
    """Record that a job was submitted ``at`` seconds before NOW."""
    row = {"job": job, "requeue": requeue, "after": after, "backend": "sbatch", "time": NOW - at}
    with (run.path / JOBS_FILE).open("a") as file:
        file.write(json.dumps(row) + "\n")


def submit_chain(run):
    """Record job 12 and its successor 13."""
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")


def squeue(*jobs, ago=1.0):
    """Return the answer that squeue gave ``ago`` seconds before NOW."""
    return QueueSnapshot(asked=NOW - ago, answered=NOW - ago, jobs={job.job: job for job in jobs})


def job(number, state, reason="", start=None):
    """Return a job that started ``start`` seconds before NOW."""
    return SlurmJob(job=number, raw=number, state=state, reason=reason, start=None if start is None else NOW - start)


def attempt(run, *, ago=0.0, **more):
    """Write the next attempt, with its last heartbeat ``ago`` seconds before NOW."""
    made = make_attempt(run, **more)
    os.utime(made.heartbeat, (NOW - ago, NOW - ago))
    return made


def end(run, events, *, ago, **more):
    """Write the next attempt, which ended ``ago`` seconds before NOW."""
    return attempt(run, ago=ago, events=[{**event, "time": NOW - ago} for event in events], **more)


def stop(run, signal="SIGTERM", *, ago, **more):
    """Write the next attempt of job 12, which stopped after step 5."""
    end(run, stopped(5, f"rank 0: {signal}", **more), ago=ago, steps=[5], job="12")


def status_of(run, queue):
    (row,) = read_status([run], queue, NOW)
    return row


def facts(row):
    """Return the fields that decide what a program does next."""
    return row.phase, row.over, row.job and row.job.job


def test_pending_job_before_the_first_start_is_queued(run):
    submit(run, "12", at=100)
    row = status_of(run, squeue(job("12", "PENDING", "Priority")))
    assert facts(row) == ("queued", False, "12")
    assert "Priority" in row.text


def test_job_submitted_after_the_answer_of_squeue_is_queued(run):
    submit(run, "12", at=5)
    assert facts(status_of(run, squeue(ago=10))) == ("queued", False, "12")


@pytest.mark.parametrize(
    ("reason", "command"),
    [("JobHeldUser", "scontrol release 12"), ("DependencyNeverSatisfied", "hsadml cancel {run}")],
)
def test_job_that_will_never_start_gets_advice(run, reason, command):
    submit(run, "12", at=100)
    advice = status_of(run, squeue(job("12", "PENDING", reason))).advice
    assert advice.endswith(command.format(run=run.path))


def test_running_job_before_the_first_attempt_is_starting(run):
    submit(run, "12", at=100)
    assert facts(status_of(run, squeue(job("12", "RUNNING", start=3)))) == ("starting", False, "12")


def test_heartbeat_newer_than_the_answer_of_squeue_is_running(run):
    submit(run, "12", at=100)
    attempt(run, ago=2, steps=[1], job="12")
    assert facts(status_of(run, squeue(job("12", "PENDING", "Priority"), ago=25))) == ("running", False, "12")


@pytest.mark.parametrize(("stage", "text"), run_status.STAGES.items())
def test_running_row_names_the_stage(run, stage, text):
    made = attempt(run, ago=1, steps=[1])
    made.rank_heartbeats.mkdir()
    made.rank_heartbeat(0).write_text(json.dumps({"stage": stage}))
    row = status_of(run, None)
    assert (row.phase, row.text) == ("running", text)


def test_stopped_chain_resumes_as_its_pending_link(run):
    submit_chain(run)
    stop(run, ago=20)
    row = status_of(run, squeue(job("12", "COMPLETED"), job("13", "PENDING", "Dependency")))
    assert facts(row) == ("stopped", False, "13")
    assert "13" in row.text and "Dependency" in row.text
    assert "SIGTERM" in row.reason and "rank 0" in row.reason


def test_running_link_of_a_stopped_chain_is_starting(run):
    submit_chain(run)
    stop(run, ago=20)
    row = status_of(run, squeue(job("12", "COMPLETED"), job("13", "RUNNING", start=10)))
    assert facts(row) == ("starting", False, "13")
    assert row.reason is None


def test_stopped_job_that_requeues_itself_resumes_as_itself(run):
    submit(run, "12", at=500, requeue="self")
    stop(run, ago=20)
    row = status_of(run, squeue(job("12", "PENDING", "BeginTime")))
    assert facts(row) == ("stopped", False, "12")
    assert "BeginTime" in row.text
    row = status_of(run, squeue(job("12", "RUNNING", start=400), ago=25))
    assert facts(row) == ("stopped", False, "12")


def test_pending_reason_from_before_the_stop_is_dropped(run):
    submit(run, "12", at=500, requeue="self")
    stop(run, ago=20)
    row = status_of(run, squeue(job("12", "PENDING", "Priority"), ago=25))
    assert facts(row) == ("stopped", False, "12")
    assert "Priority" not in row.text and row.job.reason == ""


def test_stopped_job_without_requeue_is_completing(run):
    submit(run, "12", at=500, requeue="none")
    stop(run, ago=1)
    row = status_of(run, squeue(job("12", "RUNNING", start=400)))
    assert facts(row) == ("stopped", False, "12")
    assert "completing" in row.text


def test_stopped_run_without_jobs_advises_to_submit(run):
    submit(run, "12", at=500, requeue="none")
    stop(run, ago=20)
    row = status_of(run, squeue(job("12", "COMPLETED")))
    assert facts(row) == ("stopped", True, "12")
    assert f"hsadml submit {run.config} --run {run.path}" in row.advice


@pytest.mark.parametrize("successor", [job("13", "PENDING", "Dependency"), job("13", "CANCELLED")])
def test_final_stop_is_over_although_a_successor_is_queued(run, successor):
    submit_chain(run)
    stop(run, "STOP file", ago=1, final=True)
    row = status_of(run, squeue(job("12", "RUNNING", start=400), successor))
    assert facts(row) == ("stopped", True, "12")


@pytest.mark.parametrize("states", [("CANCELLED", "COMPLETED"), ("COMPLETED", "CANCELLED"), ("CANCELLED", "CANCELLED")])
def test_chain_with_a_cancelled_link_is_cancelled(run, states):
    submit_chain(run)
    stop(run, ago=20)
    row = status_of(run, squeue(*(job(number, state) for number, state in zip(("12", "13"), states, strict=True))))
    assert (row.phase, row.over) == ("cancelled", True)


def test_job_cancelled_before_its_start_is_cancelled(run):
    submit(run, "12", at=500)
    assert facts(status_of(run, squeue(job("12", "CANCELLED")))) == ("cancelled", True, "12")


def test_forgotten_job_without_an_attempt_is_lost(run):
    submit(run, "12_0", at=500)
    assert facts(status_of(run, squeue())) == ("lost", True, "12_0")


def test_forgotten_job_with_a_silent_attempt_is_lost(run):
    submit(run, "12", at=500)
    attempt(run, ago=3600, steps=[5], job="12")
    assert facts(status_of(run, squeue())) == ("lost", True, "12")
    attempt(run, ago=2, steps=[6], job="12")
    assert facts(status_of(run, squeue())) == ("running", False, "12")


def test_lost_row_has_the_end_of_the_job(run):
    submit(run, "12", at=500)
    attempt(run, ago=100, steps=[5], job="12")
    row = status_of(run, squeue(job("12", "OUT_OF_MEMORY")))
    assert facts(row) == ("lost", True, "12")
    assert "12" in row.reason and "OUT_OF_MEMORY" in row.reason


def test_killed_link_with_a_pending_successor_is_stopped(run):
    submit_chain(run)
    attempt(run, ago=100, steps=[5], job="12")
    row = status_of(run, squeue(job("12", "NODE_FAIL"), job("13", "PENDING", "Resources")))
    assert facts(row) == ("stopped", False, "13")


def test_running_job_with_a_silent_attempt_is_silent(run):
    submit_chain(run)
    attempt(run, ago=150, steps=[5], job="12")
    row = status_of(run, squeue(job("12", "RUNNING", start=400), job("13", "PENDING", "Dependency")))
    assert facts(row) == ("silent", False, "12")
    assert "2 min" in row.text


def test_job_that_failed_before_the_first_attempt_shows_its_last_line(run):
    submit(run, "12", at=500)
    output = run.path / "slurm-12.out"
    output.write_text("one\nhsadml: no such python\n\n")
    row = status_of(run, squeue(job("12", "FAILED", "NonZeroExitCode")))
    assert facts(row) == ("failed", True, "12")
    for fact in ("FAILED", "NonZeroExitCode", "hsadml: no such python", str(output)):
        assert fact in row.reason


def test_user_error_is_over_although_a_successor_is_queued(run):
    submit_chain(run)
    end(run, [{"event": "failed", "reason": "loss is NaN", "exit_code": int(ExitCode.USER_ERROR)}], ago=20, job="12")
    row = status_of(run, squeue(job("12", "FAILED"), job("13", "PENDING", "Dependency")))
    assert facts(row) == ("failed", True, "12")
    assert row.reason == "loss is NaN"


def test_internal_error_is_over_once_no_successor_is_queued(run):
    submit_chain(run)
    row = {"event": "failed", "reason": "a peer is gone", "exit_code": int(ExitCode.INTERNAL_ERROR)}
    end(run, [row], ago=20, job="12")
    row = status_of(run, squeue(job("12", "NODE_FAIL"), job("13", "PENDING", "Dependency")))
    assert facts(row) == ("failed", False, "13")
    row = status_of(run, squeue(job("12", "FAILED"), job("13", "COMPLETED")))
    assert facts(row) == ("failed", True, "12")
    assert "hsadml submit" in row.advice


def test_failed_run_that_was_submitted_again_is_queued(run):
    submit(run, "12", at=500)
    end(run, [{"event": "failed", "reason": "loss is NaN", "exit_code": 1}], ago=100, job="12")
    submit(run, "20", at=50)
    row = status_of(run, squeue(job("12", "FAILED"), job("20", "PENDING", "Priority")))
    assert facts(row) == ("queued", False, "20")
    assert row.reason == "loss is NaN"


def test_link_after_a_lost_link_does_not_count_as_submitted_again(run):
    for number, at, after in (("12", 500, None), ("13", 490, "12"), ("14", 50, "13")):
        submit(run, number, at=at, after=after)
    stop(run, ago=100)
    row = status_of(run, squeue(job("12", "COMPLETED"), job("13", "NODE_FAIL"), job("14", "PENDING", "Resources")))
    assert facts(row) == ("stopped", False, "14")


def test_finished_run_is_finished_whatever_squeue_reports(run):
    submit_chain(run)
    end(run, [checkpoint(100, 1), {"event": "finished", "step": 100}], ago=3, steps=[100], job="12")
    row = status_of(run, squeue(job("12", "RUNNING", start=400), job("13", "PENDING", "Dependency"), ago=20))
    assert facts(row) == ("finished", True, "12")
    row = status_of(run, squeue(job("12", "COMPLETED"), job("13", "CANCELLED")))
    assert facts(row) == ("finished", True, "12")


@pytest.mark.parametrize("phase", ["stopped", "lost"])
def test_declined_job_gives_the_reason(run, phase):
    submit_chain(run)
    if phase == "stopped":
        stop(run, ago=100)
    else:
        attempt(run, ago=100, steps=[5], job="12")
    (run.path / "ended").mkdir()
    (run.path / "ended" / "13.declined").write_text(f"{DeclineReason.PREDECESSOR_FAILED}\n")
    row = status_of(run, squeue(job("12", "FAILED"), job("13", "COMPLETED")))
    assert (row.phase, row.over) == (phase, True)
    assert "job 13" in row.reason and "job 12" in row.reason


def test_every_decline_reason_has_a_text():
    assert set(run_status.DECLINED) == set(DeclineReason)


def test_job_of_an_element_is_found_by_its_array_id(run):
    submit(run, "12_3", at=500)
    attempt(run, ago=1, steps=[5], job="15")
    queue = squeue(SlurmJob(job="12_3", raw="15", state="RUNNING", start=NOW - 400))
    assert status_of(run, queue).job.job == "12_3"


def test_without_an_answer_of_slurm_the_run_folder_decides(run):
    submit(run, "12", at=500)
    no_answer = QueueSnapshot(asked=NOW, problem="Slurm is not installed here")
    assert facts(status_of(run, no_answer)) == ("queued", False, "12")
    attempt(run, ago=2, steps=[1], job="12")
    assert status_of(run, no_answer).phase == "running"
    attempt(run, ago=200, steps=[2], job="12")
    row = status_of(run, no_answer)
    assert (row.phase, row.over) == ("silent", False)
    assert "3 min" in row.text


def test_local_run_needs_no_slurm(run):
    assert facts(status_of(run, None)) == ("empty", False, None)
    attempt(run, ago=100, steps=[1])
    assert facts(status_of(run, None)) == ("lost", True, None)
    end(run, stopped(5, "rank 0: SIGINT"), ago=20, steps=[5])
    row = status_of(run, None)
    assert facts(row) == ("stopped", True, None)
    assert row.advice.endswith(f"hsadml train {run.config} --run {run.path} --nproc 2")


def test_only_the_last_two_jobs_of_unsettled_runs_are_looked_up(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run_status, "with_unlisted_jobs", lambda queue, jobs: asked.extend(jobs) or queue)
    done = make_run(tmp_path / "done")
    end(done, [{"event": "finished", "step": 100}], ago=5000)
    for number in range(12, 16):
        submit(run, str(number), at=500 - number)
        submit(done, str(100 + number), at=500)
    attempt(run, ago=100, steps=[5], job="15")
    read_status([run, done], squeue(), NOW)
    assert asked == ["14", "15"]


def test_json_row_always_has_the_same_keys(run):
    bare = status_of(run, None).as_json(NOW)
    submit(run, "12", at=500)
    attempt(run, ago=7, steps=[5], job="12")
    full = status_of(run, squeue(job("12", "RUNNING", start=400))).as_json(NOW)
    assert bare.keys() == full.keys()
    json.dumps([bare, full])
    keys = ("phase", "step", "total_steps", "job", "job_state")
    assert [full[key] for key in keys] == ["running", 5, 100, "12", "RUNNING"]
    assert full["age_seconds"] == pytest.approx(7, abs=1)
    assert bare["age_seconds"] is None
