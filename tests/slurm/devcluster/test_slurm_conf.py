"""The configuration files of a private cluster, as text."""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePosixPath

import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.slurm.devcluster import slurm_conf
from hsadml_dist.slurm.devcluster.slurm_conf import (
    DEFAULT,
    FRIENDLY,
    SITES,
    STRICT,
    ClusterLayout,
    ClusterNode,
    NodeMode,
    SimulatedSite,
)

LOCAL = ClusterLayout(
    root=PurePosixPath("/tmp/box"),
    user="me",
    controller_host="here",
    controller_address="127.0.0.1",
    controller_port=20001,
    nodes=(
        ClusterNode(name="n1", address="127.0.0.1", port=20002),
        ClusterNode(name="n2", address="127.0.0.1", port=20003),
    ),
    mode=NodeMode.LOCAL,
    site=FRIENDLY,
    gpus=("/tmp/box/dev/fakegpu0", "/tmp/box/dev/fakegpu1"),
)
NETNS = dataclasses.replace(
    LOCAL,
    mode=NodeMode.NETNS,
    controller_address="198.18.0.1",
    nodes=(
        ClusterNode(name="n1", address="198.18.0.10", port=6818),
        ClusterNode(name="n2", address="198.18.0.11", port=6818),
    ),
)


def settings(layout: ClusterLayout) -> dict[str, str]:
    """Return the settings that occur once."""
    lines = slurm_conf.slurm_conf(layout).splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith(("#", "NodeName", "PartitionName")))


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
@pytest.mark.parametrize("layout", [LOCAL, NETNS], ids=["local", "netns"])
def test_slurm_conf_has_no_setting_twice(layout: ClusterLayout, site: SimulatedSite) -> None:
    text = slurm_conf.slurm_conf(dataclasses.replace(layout, site=site))
    names = [line.split("=")[0] for line in text.splitlines() if not line.startswith(("#", "NodeName", "Partition"))]
    assert len(names) == len(set(names))
    assert not [line for line in text.splitlines() if len(line) > 1000]


def test_local_nodes_are_ports_of_one_host() -> None:
    text = slurm_conf.slurm_conf(LOCAL)
    assert "NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=20003 CPUs=8" in text


def test_netns_nodes_are_separate_hosts() -> None:
    assert "NodeName=n2 NodeHostname=n2 NodeAddr=198.18.0.11 Port=6818 CPUs=8" in slurm_conf.slurm_conf(NETNS)
    assert slurm_conf.hosts_file(NETNS).splitlines() == [
        "127.0.0.1 localhost",
        "198.18.0.1 here",
        "198.18.0.10 n1",
        "198.18.0.11 n2",
    ]
    assert "dns" not in slurm_conf.NSSWITCH


def test_all_paths_are_below_the_root() -> None:
    paths = re.findall(r"=(/[^,\s(]+)", slurm_conf.slurm_conf(LOCAL))
    assert {path for path in paths if not path.startswith("/tmp/box/")} == {"/bin/true"}


def test_sites_differ_in_signals_and_waits() -> None:
    friendly, default, strict = (
        settings(dataclasses.replace(LOCAL, site=site)) for site in (FRIENDLY, DEFAULT, STRICT)
    )
    assert friendly["AuthInfo"].endswith("cred_expire=5")
    assert default["AuthInfo"].endswith("cred_expire=120")
    assert (friendly["KillWait"], default["KillWait"]) == ("5", "30")
    assert friendly["SlurmctldParameters"] == "preempt_send_user_signal"
    assert "SlurmctldParameters" not in default
    assert "JobSubmitPlugins" not in default
    assert strict["JobSubmitPlugins"] == "lua"


@pytest.mark.parametrize(("site", "grace"), [(FRIENDLY, 5), (DEFAULT, 0)])
def test_partition_high_preempts_low(site: SimulatedSite, grace: int) -> None:
    low, high = slurm_conf.slurm_conf(dataclasses.replace(LOCAL, site=site)).splitlines()[-2:]
    assert low.startswith("PartitionName=low Nodes=n1,n2 Default=YES")
    assert low.endswith(f"PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}")
    assert high.endswith("PriorityTier=10 PreemptMode=OFF")


def test_gpus_are_optional() -> None:
    assert "Gres=gpu:2" in slurm_conf.slurm_conf(LOCAL)
    assert slurm_conf.gres_conf(LOCAL) == "Name=gpu File=/tmp/box/dev/fakegpu0\nName=gpu File=/tmp/box/dev/fakegpu1\n"
    without = dataclasses.replace(LOCAL, gpus=())
    assert "gpu" not in slurm_conf.slurm_conf(without)
    assert slurm_conf.gres_conf(without) == ""


def test_job_submit_lua_of_a_strict_site() -> None:
    text = slurm_conf.job_submit_lua(STRICT)
    assert "local MAX_SUBMITTED = 2" in text
    assert "local FROM_NODES = false" in text
    assert "@" not in text


def test_unknown_names_get_the_nearest_allowed() -> None:
    with pytest.raises(UsageError, match=r"site: .*'freindly'.*allowed: friendly, .*'friendly'"):
        slurm_conf.get_simulated_site("freindly")
    with pytest.raises(UsageError, match=r"mode: .*'netn'.*allowed: local, netns .*'netns'"):
        slurm_conf.get_node_mode("netn")
