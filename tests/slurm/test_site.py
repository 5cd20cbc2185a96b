"""A cluster's settings, parsed from captured output of scontrol and queried on a private cluster."""

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
    submit_limit,
    try_query_site,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = (GOLDEN / "scontrol-config.txt").read_text()
PARTITIONS = (GOLDEN / "scontrol-partition.txt").read_text()
LOW = Partition(name="low", is_default=True, grace_seconds=5, preempt_mode="REQUEUE", nodes=2, cpus=16)
HIGH = Partition(name="high", nodes=2, cpus=16)


def config_with(**values: str) -> str:
    """Return the captured configuration with some settings changed."""
    text = CONFIG
    for name, value in values.items():
        text, count = re.subn(rf"^({name}\s*=).*$", rf"\1 {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    return text


def test_parse_site_reads_captured_output() -> None:
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


def test_parse_site_uses_slurms_defaults_for_missing_settings() -> None:
    site = parse_site("ClusterName = x\nAuthInfo = (null)\n")
    assert (site.credential_seconds, site.kill_wait_seconds, site.requeue_exit) == (120, 30, frozenset())
    assert not site.user_signal and not site.has_accounting
    assert site.partition(None) is None


def test_parse_site_reads_accounting_limits_and_states() -> None:
    partitions = PARTITIONS.replace("MaxTime=UNLIMITED", "MaxTime=2-12:00:00").replace("State=UP", "State=DRAIN")
    site = parse_site(config_with(AccountingStorageType="accounting_storage/slurmdbd", RequeueExitHold="3"), partitions)
    assert site.has_accounting and site.requeue_exit_hold == {3}
    assert site.partitions["low"].max_seconds == 60 * 3600
    assert not site.partitions["low"].is_up


def test_parse_site_without_preemption_ignores_the_mode_of_partitions() -> None:
    site = parse_site(config_with(PreemptType="preempt/none"), PARTITIONS)
    assert site.partitions["low"].preempt_mode == "OFF"


@pytest.mark.parametrize(
    ("text", "codes"),
    [("(null)", set()), ("85", {85}), ("1,70,85", {1, 70, 85}), ("1-3,85", {1, 2, 3, 85}), ("70-70", {70})],
)
def test_parse_site_reads_exit_codes_and_ranges(text: str, codes: set[int]) -> None:
    assert parse_site(config_with(RequeueExit=text)).requeue_exit == codes


@pytest.mark.parametrize(("answer", "limit"), [("", None), ("|\n|\n", None), ("2|\n|\n", 2), ("8|\n500|3\n", 3)])
def test_parse_submit_limit_returns_the_smallest(answer: str, limit: int | None) -> None:
    assert parse_submit_limit(answer) == limit


def test_queries_without_slurm_name_the_missing_program(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path)}
    assert try_query_site(env) is None
    with pytest.raises(ClusterError, match="scontrol"):
        query_site(env)
    with pytest.raises(ClusterError, match="sacctmgr"):
        submit_limit("me", env)


@pytest.mark.slurm
def test_query_site_of_a_real_controller(make_cluster: Callable[..., Cluster]) -> None:
    expected = SITES["requeueing"]
    cluster = make_cluster(site="requeueing", nodes=1)
    site = query_site(cluster.env())
    assert site.requeue_exit == set(expected.requeue_exit)
    assert site.credential_seconds == expected.credential_seconds
    assert site.kill_wait_seconds == expected.kill_wait_seconds
    assert site.user_signal == expected.user_signal
    assert list(site.partitions) == ["low", "high"]
    assert site.partition(None) == Partition(
        name="low", is_default=True, grace_seconds=expected.grace_seconds, preempt_mode="REQUEUE", nodes=1, cpus=8
    )
    with pytest.raises(ClusterError, match="sacctmgr failed"):
        submit_limit("root", cluster.env())
