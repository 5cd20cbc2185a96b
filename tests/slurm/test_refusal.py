"""Slurm's refusals in the words of the request; those of a real cluster stand in ``test_submit.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm.box.cluster import Cluster
from hsadml_dist.slurm.refusal import explain_refusal
from hsadml_dist.slurm.sbatch import JobRequest
from hsadml_dist.slurm.site import Partition, SlurmSite
from hsadml_dist.slurm.submit import check_request

SITE = SlurmSite(
    partitions={"gpu": Partition(name="gpu", nodes=4, is_default=True), "long": Partition(name="long", nodes=2)}
)
SAID = ClusterError("sbatch failed: words of Slurm")
REQUEST = JobRequest(
    run_dir=None, nodes=2, tasks_per_node=1, cpus_per_task=1, python="python", working_dir=None, job_name="x"
)


def line(refusal: ClusterError = SAID, site: SlurmSite | None = SITE, **asked) -> str:
    return str(explain_refusal(dataclasses.replace(REQUEST, **asked), site, refusal))


def test_an_unknown_partition_gets_the_known_ones_and_the_nearest() -> None:
    assert line(partition="gpus") == (
        "--partition gpus: this cluster has no such partition (did you mean 'gpu'?); its partitions: gpu, long "
        "(sbatch failed: words of Slurm)"
    )


@pytest.mark.parametrize(("partition", "count"), [(None, 4), ("long", 2)])
def test_more_nodes_than_there_are_get_their_number(partition: str | None, count: int) -> None:
    assert line(partition=partition, nodes=5).startswith(f"--nodes 5: partition {partition or 'gpu'} has {count} (")
    assert line(partition=partition, nodes=count) == str(SAID)


def test_an_account_that_may_not_submit_is_named_and_so_is_a_missing_one() -> None:
    refusal = ClusterError("Invalid account or account/partition combination specified")
    assert line(refusal, account="lab").startswith("--account lab: may not submit to partition gpu; ")
    assert line(refusal).startswith("no --account is given; without one you may not submit to partition gpu; ")


def test_what_slurm_says_stays_where_nothing_is_known() -> None:
    assert line(partition="nosuch", site=None) == str(SAID)
    assert line(partition="nosuch", site=SlurmSite()) == str(SAID)


@pytest.mark.slurm
def test_a_real_cluster_is_asked_before_anything_is_queued(
    local_cluster: Cluster, request_of: Callable[..., JobRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", local_cluster.env()["SLURM_CONF"])
    request = request_of()
    for asked, begin in (({"partition": "nosuch"}, "--partition nosuch: "), ({"nodes": 99}, "--nodes 99: partition ")):
        with pytest.raises(ClusterError) as refused:
            check_request(dataclasses.replace(request, **asked))
        assert str(refused.value).startswith(begin)
        assert "\n" not in str(refused.value)
