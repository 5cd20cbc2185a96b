from dataclasses import replace

import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.launch.doctor import slurm_checks
from hsadml_dist.slurm.site import Partition, SlurmSite

LOW = Partition(name="low", is_default=True, grace_seconds=0, preempt_mode="REQUEUE", nodes=2, cpus=16)
SITE = SlurmSite(partitions={"low": LOW, "high": Partition(name="high")})


def tools(folder, *names, body="exit 0"):
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


def test_machine_without_slurm_is_ok(tmp_path):
    site, results = slurm_checks.find_site({"PATH": str(tmp_path)})
    assert site is None
    assert [one.verdict for one in results] == ["ok"]


def test_missing_programs_fail_and_are_named(tmp_path):
    site, results = slurm_checks.find_site(tools(tmp_path, "sbatch", "scontrol"))
    assert site is not None
    assert results[0].verdict == "fail" and "srun, squeue, scancel" in results[0].todo


def test_missing_slurm_conf_is_a_warning_and_a_silent_controller_is_a_failure(tmp_path):
    fetch = "echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1"
    _, results = slurm_checks.find_site(tools(tmp_path, *slurm_checks.PROGRAMS, body=fetch))
    assert [one.verdict for one in results] == ["ok", "warn"]
    contact = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
    _, results = slurm_checks.find_site(tools(tmp_path, *slurm_checks.PROGRAMS, body=contact))
    assert [one.verdict for one in results] == ["ok", "fail"]


def test_unknown_partition_is_a_usage_error_with_the_nearest():
    with pytest.raises(UsageError, match=r"--partition hihg: .*low, high.*'high'"):
        slurm_checks.select_partition(SITE, "hihg")
    assert slurm_checks.select_partition(SITE, None) == LOW


def test_check_partition_reports_state_and_limits():
    found = slurm_checks.check_partition(replace(LOW, max_seconds=36 * 3600), 2)
    assert found.verdict == "ok"
    assert all(fact in found.found for fact in ("low", "of 2", "2 nodes", "16 CPUs", "1 day 12 h"))
    assert slurm_checks.check_partition(replace(LOW, is_up=False), 1).verdict == "fail"


@pytest.mark.parametrize(
    ("mode", "grace", "needs", "status"),
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
def test_check_preemption_compares_half_the_time_until_the_kill_with_a_save(mode, grace, needs, status):
    partition = replace(LOW, preempt_mode=mode, grace_seconds=grace)
    assert slurm_checks.check_preemption(SITE, partition, needs).verdict == status


@pytest.mark.parametrize(("user_signal", "grace", "signal"), [(True, 5, "USR2"), (True, 0, "TERM"), (False, 5, "TERM")])
def test_check_preemption_names_the_signal(user_signal, grace, signal):
    site, partition = replace(SITE, user_signal=user_signal), replace(LOW, grace_seconds=grace)
    assert signal in slurm_checks.check_preemption(site, partition, 1.0).found


def verdicts(**settings):
    return [one.verdict for one in slurm_checks.check_requeue_modes(replace(SITE, **settings), LOW)]


def test_requeue_mode_that_cannot_work_fails_only_if_no_other_works():
    assert verdicts() == ["ok", "ok", "ok"]
    assert verdicts(requeue_exit=frozenset({85})) == ["ok", "ok", "warn"]
    assert verdicts(requeue_exit=frozenset({1, 85})) == ["warn", "warn", "warn"]
    assert verdicts(requeue_exit=frozenset({0})) == ["fail", "fail", "fail"]
    ended = replace(LOW, preempt_mode="CANCEL")
    site = replace(SITE, partitions={"low": ended})
    assert [one.verdict for one in slurm_checks.check_requeue_modes(site, ended)] == ["ok", "warn", "ok"]


def test_requeue_problem_is_split_into_result_and_remedy():
    *_, last = slurm_checks.check_requeue_modes(replace(SITE, requeue_exit=frozenset({85})), LOW)
    assert "RequeueExit=85" in last.found and "chain or self" not in last.found
    assert "chain or self" in last.todo


def test_long_requeue_wait_and_short_job_memory_are_warnings():
    assert slurm_checks.check_requeue_wait(SITE).found.startswith("121 s")
    assert slurm_checks.check_requeue_wait(SITE).verdict == "warn"
    assert slurm_checks.check_requeue_wait(replace(SITE, credential_seconds=5)).verdict == "ok"
    assert slurm_checks.check_min_job_age(SITE).verdict == "ok"
    assert slurm_checks.check_min_job_age(replace(SITE, min_job_age_seconds=10)).verdict == "warn"


@pytest.mark.parametrize(("limit", "status"), [(None, "ok"), (2, "ok"), (1, "warn")])
def test_submit_limit_below_two_jobs_is_a_warning(limit, status):
    assert slurm_checks.check_submit_limit(limit).verdict == status


def test_submit_limit_is_queried_only_with_accounting(tmp_path):
    env = tools(tmp_path, "sacctmgr", body="echo '1|'")
    by_name = {one.name: one for one in slurm_checks.check_slurm(SITE, LOW, None, env)}
    assert by_name["submit limit"].verdict == "unknown"
    by_name = {one.name: one for one in slurm_checks.check_slurm(replace(SITE, has_accounting=True), LOW, None, env)}
    assert by_name["submit limit"].verdict == "warn"


def test_missing_default_partition_is_unknown():
    site = SlurmSite(partitions={"a": Partition(name="a")})
    first = next(slurm_checks.check_slurm(site, None, None, {"PATH": ""}))
    assert first.verdict == "unknown" and "--partition" in first.todo


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "59 s"), (3600, "1 h"), (2 * 86400 + 12 * 3600, "2 days 12 h"), (86460, "1 day 1 min")]
)
def test_format_duration(seconds, text):
    assert slurm_checks.format_duration(seconds) == text
