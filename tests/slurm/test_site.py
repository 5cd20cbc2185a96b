"""A site's settings, read from what scontrol said on a private cluster, and what they mean for requeueing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.devcluster.slurm_conf import SITES
from hsadml_dist.slurm.site import (
    Partition,
    SlurmSite,
    parse_site,
    parse_submit_limit,
    query_site,
    requeue_problem,
    requeue_warning,
    submit_limit,
    try_query_site,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = (GOLDEN / "scontrol-config.txt").read_text()
PARTITIONS = (GOLDEN / "scontrol-partition.txt").read_text()
LOW = Partition(name="low", is_default=True, grace_seconds=5, preempt_mode="REQUEUE", nodes=2, cpus=16)
HIGH = Partition(name="high", nodes=2, cpus=16)


def changed(**values: str) -> str:
    """The captured configuration with some settings changed."""
    text = CONFIG
    for name, value in values.items():
        text, count = re.subn(rf"^({name}\s*=).*$", rf"\1 {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    return text


def test_the_captured_answers_are_read() -> None:
    assert parse_site(CONFIG, PARTITIONS) == SlurmSite(
        cluster="box",
        version="22.05.8",
        preempt_mode="REQUEUE",
        credential_seconds=5,
        kill_wait_seconds=5,
        min_job_age_seconds=600,
        user_signal=True,
        partitions={"low": LOW, "high": HIGH},
    )


def test_what_slurm_does_not_say_is_slurms_own_default() -> None:
    site = parse_site("ClusterName = x\nAuthInfo = (null)\n")
    assert (site.credential_seconds, site.kill_wait_seconds, site.requeue_exit) == (120, 30, frozenset())
    assert site.job_requeue and not site.user_signal and not site.has_accounting
    assert site.partition(None) is None


def test_other_settings_are_read() -> None:
    partitions = PARTITIONS.replace("MaxTime=UNLIMITED", "MaxTime=2-12:00:00").replace("State=UP", "State=DRAIN")
    text = changed(AccountingStorageType="accounting_storage/slurmdbd", JobRequeue="0", RequeueExitHold="3")
    site = parse_site(text, partitions)
    assert site.has_accounting and not site.job_requeue and site.requeue_exit_hold == {3}
    assert site.partitions["low"].max_seconds == 60 * 3600
    assert not site.partitions["low"].is_up
    without = parse_site(changed(PreemptType="preempt/none"), PARTITIONS)
    assert without.partitions["low"].preempt_mode == "OFF"


@pytest.mark.parametrize(
    ("text", "codes"),
    [("(null)", set()), ("85", {85}), ("1,70,85", {1, 70, 85}), ("1-3,85", {1, 2, 3, 85}), ("70-70", {70})],
)
def test_exit_codes_are_read_with_their_spans(text: str, codes: set[int]) -> None:
    assert parse_site(changed(RequeueExit=text)).requeue_exit == codes


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        ({}, {}),
        ({"JobRequeue": "0"}, {}),
        ({"RequeueExit": "1,70,85"}, {"none": "exit with 85, as a stopped run does (RequeueExit=1,70,85)"}),
        ({"RequeueExitHold": "85"}, {"none": "(RequeueExitHold=85)"}),
        ({"RequeueExit": "1,70"}, {}),
        ({"RequeueExit": "0-255"}, dict.fromkeys(("chain", "self", "none"), "exit with 0 (RequeueExit=0,1,2,")),
    ],
)
def test_a_mode_that_cannot_work_is_told_in_one_line(settings: dict[str, str], problems: dict[str, str]) -> None:
    site = parse_site(changed(**settings), PARTITIONS)
    for mode in ("chain", "self", "none"):
        said = requeue_problem(site, mode)
        assert (said is not None) == (mode in problems), said
        if said is not None:
            assert said.startswith(f"--requeue {mode}: ") and problems[mode] in said and "\n" not in said


def test_a_job_that_is_ended_at_once_cannot_put_itself_back() -> None:
    text = PARTITIONS.replace("PreemptMode=REQUEUE", "PreemptMode=CANCEL")
    with_notice, at_once = parse_site(CONFIG, text), parse_site(CONFIG, text.replace("GraceTime=5", "GraceTime=0"))
    assert requeue_problem(with_notice, "self") is None
    assert "preempted in partition low" in (requeue_problem(at_once, "self") or "")
    assert requeue_problem(at_once, "self", "high") is None
    assert requeue_problem(at_once, "self", "nowhere") is None
    assert requeue_problem(at_once, "chain") is None


def test_a_failed_job_that_comes_back_is_worth_a_remark() -> None:
    assert requeue_warning(parse_site(changed(RequeueExit="85")), "chain") is None
    said = requeue_warning(parse_site(changed(RequeueExit="1,70,85")), "chain") or ""
    assert said.startswith("--requeue chain: this site puts back jobs that exit with 1,70 (RequeueExit=1,70,85)")


@pytest.mark.parametrize(("answer", "limit"), [("", None), ("|\n|\n", None), ("2|\n|\n", 2), ("8|\n500|3\n", 3)])
def test_the_smallest_limit_counts(answer: str, limit: int | None) -> None:
    assert parse_submit_limit(answer) == limit


def test_without_slurm_there_is_no_site(tmp_path: Path) -> None:
    assert try_query_site({"PATH": str(tmp_path)}) is None
    with pytest.raises(ClusterError, match="scontrol is not on PATH"):
        query_site({"PATH": str(tmp_path)})
    with pytest.raises(ClusterError, match="sacctmgr is not on PATH"):
        submit_limit("me", {"PATH": str(tmp_path)})


@pytest.mark.slurm
def test_a_real_controller_answers(make_cluster: Callable[..., Cluster]) -> None:
    played = SITES["requeueing"]
    cluster = make_cluster(site="requeueing", nodes=1)
    site = try_query_site(cluster.env())
    assert site is not None
    assert site.requeue_exit == set(played.requeue_exit)
    assert site.credential_seconds == played.credential_seconds
    assert site.kill_wait_seconds == played.kill_wait_seconds
    assert site.user_signal == played.user_signal
    assert list(site.partitions) == ["low", "high"]
    assert site.partition(None) == Partition(
        name="low", is_default=True, grace_seconds=played.grace_seconds, preempt_mode="REQUEUE", nodes=1, cpus=8
    )
    with pytest.raises(ClusterError, match="sacctmgr failed"):
        submit_limit("root", cluster.env())
