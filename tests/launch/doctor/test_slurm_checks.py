from dataclasses import replace

import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.launch.doctor import slurm_checks as queue
from hsadml_dist.slurm.site import Partition, SlurmSite

LOW = Partition(name="low", is_default=True, grace_seconds=0, preempt_mode="REQUEUE", nodes=2, cpus=16)
SITE = SlurmSite(partitions={"low": LOW, "high": Partition(name="high")})


def tools(folder, *names, body="exit 0"):
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


def test_a_laptop_without_slurm_is_well(tmp_path):
    site, said = queue.find_site({"PATH": str(tmp_path)})
    assert site is None
    assert [one.verdict for one in said] == ["ok"]


def test_programs_that_lack_are_named(tmp_path):
    site, said = queue.find_site(tools(tmp_path, "sbatch", "scontrol"))
    assert site is not None
    assert said[0].verdict == "fail" and said[0].todo.startswith("put srun, squeue, scancel on PATH")


def test_programs_without_a_cluster_are_a_warning_and_a_silent_controller_is_a_failure(tmp_path):
    fetch = "echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1"
    _, said = queue.find_site(tools(tmp_path, *queue.PROGRAMS, body=fetch))
    assert [one.verdict for one in said] == ["ok", "warn"]
    contact = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
    _, said = queue.find_site(tools(tmp_path, *queue.PROGRAMS, body=contact))
    assert [one.verdict for one in said] == ["ok", "fail"]


def test_an_unknown_partition_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"no such partition; there are: low, high \(did you mean 'high'\?\)"):
        queue.select_partition(SITE, "hihg")
    assert queue.select_partition(SITE, None) == LOW


def test_where_jobs_start_and_how_long_they_may_run():
    found = queue.check_partition(replace(LOW, max_seconds=36 * 3600), 2)
    assert found.verdict == "ok"
    assert found.found == "low (of 2; another: --partition NAME): 2 nodes, 16 CPUs, at most 1 day 12 h"
    assert queue.check_partition(replace(LOW, is_up=False), 1).verdict == "fail"


@pytest.mark.parametrize(
    ("mode", "grace", "needs", "verdict"),
    [
        ("OFF", 0, 99.0, "ok"),
        ("SUSPEND", 0, 99.0, "ok"),
        ("REQUEUE", 0, None, "unknown"),
        ("REQUEUE", 0, 14.0, "ok"),
        ("REQUEUE", 0, 16.0, "warn"),
        ("REQUEUE", 60, 16.0, "ok"),
        ("CANCEL", 60, 46.0, "warn"),
    ],
)
def test_half_the_time_until_the_kill_must_do_for_a_save(mode, grace, needs, verdict):
    partition = replace(LOW, preempt_mode=mode, grace_seconds=grace)
    assert queue.check_preemption(SITE, partition, needs).verdict == verdict


@pytest.mark.parametrize(
    ("user_signal", "grace", "told"), [(True, 5, "told by USR2"), (True, 0, "told by TERM"), (False, 5, "told by TERM")]
)
def test_by_which_signal_a_run_is_told(user_signal, grace, told):
    site, partition = replace(SITE, user_signal=user_signal), replace(LOW, grace_seconds=grace)
    assert told in queue.check_preemption(site, partition, 1.0).found


def verdicts(**settings):
    return [one.verdict for one in queue.check_requeue_modes(replace(SITE, **settings), LOW)]


def test_a_mode_that_cannot_work_is_grave_only_if_no_other_does():
    assert verdicts() == ["ok", "ok", "ok"]
    assert verdicts(requeue_exit=frozenset({85})) == ["ok", "ok", "warn"]
    assert verdicts(requeue_exit=frozenset({1, 85})) == ["warn", "warn", "warn"]
    assert verdicts(requeue_exit=frozenset({0})) == ["fail", "fail", "fail"]
    ended = replace(LOW, preempt_mode="CANCEL")
    site = replace(SITE, partitions={"low": ended})
    assert [one.verdict for one in queue.check_requeue_modes(site, ended)] == ["ok", "warn", "ok"]


def test_what_to_do_stands_apart_from_what_was_found():
    *_, last = queue.check_requeue_modes(replace(SITE, requeue_exit=frozenset({85})), LOW)
    assert last.found.startswith("this site puts back jobs that exit with 85")
    assert last.todo == "use chain or self"


def test_long_waits_and_short_memories_are_warned_of():
    assert queue.check_requeue_wait(SITE).found.startswith("121 s before")
    assert queue.check_requeue_wait(SITE).verdict == "warn"
    assert queue.check_requeue_wait(replace(SITE, credential_seconds=5)).verdict == "ok"
    assert queue.check_min_job_age(SITE).verdict == "ok"
    assert queue.check_min_job_age(replace(SITE, min_job_age_seconds=10)).verdict == "warn"


@pytest.mark.parametrize(("limit", "verdict"), [(None, "ok"), (2, "ok"), (1, "warn")])
def test_a_chain_needs_two_jobs(limit, verdict):
    assert queue.check_submit_limit(limit).verdict == verdict


def test_the_limit_is_asked_only_where_there_are_accounts(tmp_path):
    env = tools(tmp_path, "sacctmgr", body="echo '1|'")
    by_name = {one.name: one for one in queue.check_slurm(SITE, LOW, None, env)}
    assert by_name["submit limit"].verdict == "unknown"
    by_name = {one.name: one for one in queue.check_slurm(replace(SITE, has_accounting=True), LOW, None, env)}
    assert by_name["submit limit"].verdict == "warn"


def test_without_a_default_partition_one_must_be_named():
    site = SlurmSite(partitions={"a": Partition(name="a")})
    first = next(queue.check_slurm(site, None, None, {"PATH": ""}))
    assert (first.verdict, first.found) == ("unknown", "no default among a")


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "59 s"), (3600, "1 h"), (2 * 86400 + 12 * 3600, "2 days 12 h"), (86460, "1 day 1 min")]
)
def test_durations(seconds, text):
    assert queue.duration(seconds) == text
