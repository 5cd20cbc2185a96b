"""What a run folder and Slurm say together: made-up folders, made-up answers."""

import json
import time

import pytest

from hsadml_dist.slurm import run_status as status
from hsadml_dist.slurm.client import FORGOTTEN, SlurmJob
from hsadml_dist.slurm.job_queue import QueueSnapshot
from hsadml_dist.slurm.job_records import JOBS_FILE
from hsadml_dist.slurm.run_status import read_status
from tests.run.run_factory import checkpoint, make_attempt, make_run, stopped

NOW = 1_800_000_000.0


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run; what squeue does not name, Slurm has forgotten."""

    def forgotten(queue, jobs):
        others = {name: SlurmJob(job=name, state=FORGOTTEN) for name in jobs if queue.find(name) is None}
        return QueueSnapshot(
            asked=queue.asked, answered=queue.answered, jobs=queue.jobs, others={**queue.others, **others}
        )

    monkeypatch.setattr(status, "with_unlisted_jobs", forgotten)
    return make_run(tmp_path / "run")


def submit(run, job, *, at, requeue="chain", after=None):
    row = {"job": job, "requeue": requeue, "after": after, "backend": "sbatch", "time": NOW - at}
    with (run.path / JOBS_FILE).open("a") as file:
        file.write(json.dumps(row) + "\n")


def squeue(*jobs, ago=1.0):
    """What squeue said ``ago`` seconds before NOW."""
    return QueueSnapshot(asked=NOW - ago, answered=NOW - ago, jobs={job.job: job for job in jobs})


def job(number, state, reason="", start=None):
    return SlurmJob(job=number, raw=number, state=state, reason=reason, start=None if start is None else NOW - start)


def attempt(run, *, ago=0.0, **more):
    """The next attempt, whose last sign came ``ago`` seconds before NOW."""
    return make_attempt(run, silent_for=time.time() - NOW + ago, **more)


def end(run, events, *, ago, **more):
    return attempt(run, ago=ago, events=[{**event, "time": NOW - ago} for event in events], **more)


def seen(run, queue):
    (row,) = read_status([run], queue, NOW)
    return row


def test_a_run_that_waits_for_its_start(run):
    submit(run, "12", at=100)
    row = seen(run, squeue(job("12", "PENDING", "Priority")))
    assert (row.phase, row.text, row.job.job, row.over) == ("queued", "queued (Priority)", "12", False)


def test_a_job_that_squeue_could_not_yet_name_waits(run):
    submit(run, "12", at=5)
    assert seen(run, squeue(ago=10)).text == "queued"


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("JobHeldUser", "it is held: scontrol release 12"),
        ("DependencyNeverSatisfied", "what it waits for cannot happen any more: hsadml cancel {run}"),
    ],
)
def test_a_job_that_will_never_start_says_what_to_do(run, reason, advice):
    submit(run, "12", at=100)
    assert seen(run, squeue(job("12", "PENDING", reason))).advice == advice.format(run=run.path)


def test_a_job_that_runs_before_the_first_attempt_is_starting(run):
    submit(run, "12", at=100)
    assert seen(run, squeue(job("12", "RUNNING", start=3))).text == "starting"


def test_a_fresh_sign_of_life_counts_more_than_an_old_answer(run):
    submit(run, "12", at=100)
    attempt(run, ago=2, steps=[1], job="12")
    row = seen(run, squeue(job("12", "PENDING", "Priority"), ago=25))
    assert (row.phase, row.text, row.job.job) == ("running", "running", "12")


@pytest.mark.parametrize(("stage", "text"), [("save", "running (saving)"), ("evaluate", "running (judging)")])
def test_what_is_done_beside_the_steps_is_said(run, stage, text):
    made = attempt(run, ago=1, steps=[1])
    made.rank_heartbeats.mkdir()
    made.rank_heartbeat(0).write_text(json.dumps({"stage": stage}))
    assert seen(run, None).text == text


def test_a_chain_goes_on_as_its_next_link(run):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    end(run, stopped(5, "rank 0: SIGTERM"), ago=20, steps=[5], job="12")
    row = seen(run, squeue(job("12", "COMPLETED"), job("13", "PENDING", "Dependency")))
    assert (row.phase, row.text) == ("stopped", "stopped, goes on as job 13 (Dependency)")
    assert (row.reason, row.over, row.job.job) == ("told to stop by SIGTERM (rank 0)", False, "13")


def test_the_next_link_is_starting_once_it_runs(run):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    end(run, stopped(5, "rank 0: SIGTERM"), ago=20, steps=[5], job="12")
    row = seen(run, squeue(job("12", "COMPLETED"), job("13", "RUNNING", start=10)))
    assert (row.phase, row.text, row.reason) == ("starting", "starting", None)


def test_a_job_that_requeues_itself_goes_on_as_itself(run):
    submit(run, "12", at=500, requeue="self")
    end(run, stopped(5, "rank 0: SIGTERM"), ago=20, steps=[5], job="12")
    assert seen(run, squeue(job("12", "PENDING", "BeginTime"))).text == "stopped, goes on as job 12 (BeginTime)"
    # Asked before the stop, squeue told why the job waited for its last start.
    old = squeue(job("12", "PENDING", "Priority"), ago=25)
    assert seen(run, old).text == "stopped, goes on as job 12"
    running = squeue(job("12", "RUNNING", start=400), ago=25)
    assert seen(run, running).text == "stopped, goes on as job 12"
    assert not seen(run, running).over


def test_a_job_that_does_not_come_back_is_just_ending(run):
    submit(run, "12", at=500, requeue="none")
    end(run, stopped(5, "rank 0: SIGTERM"), ago=1, steps=[5], job="12")
    row = seen(run, squeue(job("12", "RUNNING", start=400)))
    assert (row.text, row.over) == ("stopped, job 12 is just ending", False)


def test_a_stopped_run_without_jobs_says_how_it_goes_on(run):
    submit(run, "12", at=500, requeue="none")
    end(run, stopped(5, "rank 0: SIGTERM"), ago=20, steps=[5], job="12")
    row = seen(run, squeue(job("12", "COMPLETED")))
    assert (row.phase, row.over) == ("stopped", True)
    assert row.advice == f"to go on: hsadml submit {run.config} --run {run.path} and the options of before"


def test_what_its_user_stopped_by_a_file_does_not_go_on_though_its_successor_waits(run):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    end(run, stopped(5, "rank 0: STOP file"), ago=1, steps=[5], job="12")
    for successor in (job("13", "PENDING", "Dependency"), job("13", "CANCELLED")):
        row = seen(run, squeue(job("12", "RUNNING", start=400), successor))
        assert (row.phase, row.text, row.over) == ("stopped", "stopped", True)


@pytest.mark.parametrize("states", [("CANCELLED", "COMPLETED"), ("COMPLETED", "CANCELLED"), ("CANCELLED", "CANCELLED")])
def test_a_chain_of_which_a_link_was_cancelled_is_cancelled(run, states):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    end(run, stopped(5, "rank 0: SIGTERM"), ago=20, steps=[5], job="12")
    row = seen(run, squeue(*(job(number, state) for number, state in zip(("12", "13"), states, strict=True))))
    assert (row.phase, row.over) == ("cancelled", True)


def test_cancelled_before_the_first_start(run):
    submit(run, "12", at=500)
    assert seen(run, squeue(job("12", "CANCELLED"))).phase == "cancelled"


def test_a_job_that_left_no_trace_before_its_start(run):
    submit(run, "12_0", at=500)
    row = seen(run, squeue())
    assert (row.phase, row.text, row.over) == ("lost", "lost: its job left the queue, and nothing tells how", True)


def test_a_job_of_which_nothing_is_left_is_lost(run):
    submit(run, "12", at=500)
    attempt(run, ago=61, steps=[5], job="12")
    row = seen(run, squeue())
    assert (row.phase, row.text, row.over) == ("lost", "lost: its job is gone", True)
    attempt(run, ago=59, steps=[6], job="12")
    assert seen(run, squeue()).phase == "running"


def test_how_a_lost_job_ended_is_said_where_it_is_known(run):
    submit(run, "12", at=500)
    attempt(run, ago=100, steps=[5], job="12")
    row = seen(run, squeue(job("12", "OUT_OF_MEMORY")))
    assert (row.text, row.reason) == ("lost: its job is gone", "job 12 ended as OUT_OF_MEMORY")


def test_a_link_that_was_killed_without_a_word_is_gone_on_with(run):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    attempt(run, ago=100, steps=[5], job="12")
    row = seen(run, squeue(job("12", "NODE_FAIL"), job("13", "PENDING", "Resources")))
    assert row.text == "stopped, goes on as job 13 (Resources)"


def test_a_job_that_runs_in_silence_is_told_from_a_lost_one(run):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    attempt(run, ago=150, steps=[5], job="12")
    row = seen(run, squeue(job("12", "RUNNING", start=400), job("13", "PENDING", "Dependency")))
    assert (row.phase, row.text, row.over) == ("silent", "running, but silent for 2 min", False)
    assert row.job.job == "12"


def test_a_job_that_failed_before_the_training_began_shows_its_last_words(run):
    submit(run, "12", at=500)
    output = run.path / "slurm-12.out"
    output.write_text("one\nhsadml: no such python\n\n")
    row = seen(run, squeue(job("12", "FAILED", "NonZeroExitCode")))
    assert (row.phase, row.over) == ("failed", True)
    assert row.reason == (
        "job 12 ended as FAILED (NonZeroExitCode) before the training began; its last line: hsadml: no such python "
        f"(in {output})"
    )


def test_a_failure_is_over_though_a_successor_still_waits(run):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    end(run, [{"event": "failed", "reason": "loss is NaN", "exit_code": 1}], ago=20, job="12")
    row = seen(run, squeue(job("12", "FAILED"), job("13", "PENDING", "Dependency")))
    assert (row.phase, row.text, row.reason, row.over) == ("failed", "failed", "loss is NaN", True)


def test_a_failure_that_a_restart_may_mend_is_not_over_while_a_successor_waits(run):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    end(run, [{"event": "failed", "reason": "a peer is gone", "exit_code": 70}], ago=20, job="12")
    row = seen(run, squeue(job("12", "NODE_FAIL"), job("13", "PENDING", "Dependency")))
    assert (row.text, row.over) == ("failed, job 13 is still queued (Dependency)", False)
    row = seen(run, squeue(job("12", "FAILED"), job("13", "COMPLETED")))
    assert (row.text, row.over) == ("failed", True)
    assert row.advice.startswith("to go on: hsadml submit")


def test_a_run_that_was_submitted_again_waits_anew(run):
    submit(run, "12", at=500)
    end(run, [{"event": "failed", "reason": "loss is NaN", "exit_code": 1}], ago=100, job="12")
    submit(run, "20", at=50)
    row = seen(run, squeue(job("12", "FAILED"), job("20", "PENDING", "Priority")))
    assert (row.phase, row.text, row.reason) == ("queued", "queued (Priority)", "loss is NaN")


def test_a_link_that_follows_one_without_an_attempt_was_not_submitted_by_anybody(run):
    for number, at, after in (("12", 500, None), ("13", 490, "12"), ("14", 50, "13")):
        submit(run, number, at=at, after=after)
    end(run, stopped(5, "rank 0: SIGTERM"), ago=100, steps=[5], job="12")
    row = seen(run, squeue(job("12", "COMPLETED"), job("13", "NODE_FAIL"), job("14", "PENDING", "Resources")))
    assert row.text == "stopped, goes on as job 14 (Resources)"


def test_finished_whatever_the_queue_says(run):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    end(run, [checkpoint(100, 1), {"event": "finished", "step": 100}], ago=3, steps=[100], job="12")
    row = seen(run, squeue(job("12", "RUNNING", start=400), job("13", "PENDING", "Dependency"), ago=20))
    assert (row.phase, row.over, row.job.job) == ("finished", True, "12")


def test_a_successor_that_was_taken_out_of_the_queue_is_not_the_job_of_a_finished_run(run):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    end(run, [{"event": "finished", "step": 100}], ago=30, steps=[100], job="12")
    row = seen(run, squeue(job("12", "COMPLETED"), job("13", "CANCELLED")))
    assert (row.phase, row.job.job) == ("finished", "12")


@pytest.mark.parametrize("phase", ["stopped", "lost"])
def test_a_successor_that_would_not_go_on_says_why(run, phase):
    submit(run, "12", at=500)
    submit(run, "13", at=490, after="12")
    if phase == "stopped":
        end(run, stopped(5, "rank 0: SIGTERM"), ago=100, steps=[5], job="12")
    else:
        attempt(run, ago=100, steps=[5], job="12")
    (run.path / "slurm-13.out").write_text("hsadml: nothing to do: job 12 ended otherwise\n")
    row = seen(run, squeue(job("12", "FAILED"), job("13", "COMPLETED")))
    assert (row.phase, row.over) == (phase, True)
    assert row.reason.endswith("job 13: hsadml: nothing to do: job 12 ended otherwise")


def test_an_elements_job_is_found_by_its_name_in_the_array(run):
    submit(run, "12_3", at=500)
    attempt(run, ago=1, steps=[5], job="15")
    queue = squeue(SlurmJob(job="12_3", raw="15", state="RUNNING", start=NOW - 400))
    assert seen(run, queue).job.job == "12_3"


def test_without_an_answer_the_folder_must_do(run):
    submit(run, "12", at=500)
    none = QueueSnapshot(asked=NOW, problem="Slurm is not installed here")
    assert (seen(run, none).phase, seen(run, none).text) == ("queued", "submitted as job 12")
    attempt(run, ago=2, steps=[1], job="12")
    assert seen(run, none).text == "running"
    attempt(run, ago=200, steps=[2], job="12")
    assert (seen(run, none).text, seen(run, none).over) == ("silent for 3 min", False)


def test_local_runs_need_no_slurm(run):
    assert (seen(run, None).phase, seen(run, None).text) == ("empty", "not started")
    attempt(run, ago=100, steps=[1])
    assert (seen(run, None).text, seen(run, None).over) == ("lost: no sign of life for 100 s", True)
    end(run, stopped(5, "rank 0: SIGINT"), ago=20, steps=[5])
    row = seen(run, None)
    assert (row.text, row.over) == ("stopped", True)
    assert row.advice == f"to go on: hsadml train {run.config} --run {run.path} --nproc 2"


def test_only_jobs_of_which_something_is_to_be_learnt_are_asked_for(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(status, "with_unlisted_jobs", lambda queue, jobs: asked.extend(jobs) or queue)
    done = make_run(tmp_path / "done")
    end(done, [{"event": "finished", "step": 100}], ago=5000)
    for number in range(12, 16):
        submit(run, str(number), at=500 - number)
        submit(done, str(100 + number), at=500)
    attempt(run, ago=100, steps=[5], job="15")
    read_status([run, done], squeue(), NOW)
    assert asked == ["14", "15"]


def test_for_programs_the_keys_are_always_the_same(run):
    bare = seen(run, None).as_json(NOW)
    submit(run, "12", at=500)
    attempt(run, ago=7, steps=[5], job="12")
    full = seen(run, squeue(job("12", "RUNNING", start=400))).as_json(NOW)
    assert bare.keys() == full.keys()
    json.dumps([bare, full])
    assert (full["phase"], full["step"], full["total_steps"], full["job"], full["job_state"]) == (
        "running",
        5,
        100,
        "12",
        "RUNNING",
    )
    assert full["age_seconds"] == pytest.approx(7, abs=1)
    assert bare["age_seconds"] is None
