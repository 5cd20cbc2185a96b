"""The survey of a cluster: node types, accounts and plug-ins from the output of Slurm's commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.site import (
    Accounts,
    NodeType,
    parse_accounts,
    parse_node_types,
    parse_submit_plugins,
    survey_site,
)

CONFIG = """\
Configuration data as of 2026-01-01T00:00:00
AccountingStorageType   = accounting_storage/slurmdbd
AuthInfo                = cred_expire=120
ClusterName             = west
JobSubmitPlugins        = lua,require_timelimit
SLURM_VERSION           = 23.11.4
"""
PARTITIONS = """\
PartitionName=cpu AllocNodes=ALL Default=YES DefaultTime=00:10:00 MaxTime=UNLIMITED State=UP TotalNodes=9
PartitionName=gpu AllocNodes=login[1-2] Default=NO DefaultTime=NONE MaxTime=2-00:00:00 State=UP TotalNodes=4
PartitionName=old AllocNodes=ALL Default=NO DefaultTime=NONE MaxTime=1:00 State=DOWN TotalNodes=4
PartitionName=secret AllocNodes=ALL Default=NO DefaultTime=NONE MaxTime=1:00 State=UP TotalNodes=4
"""
SINFO = "cpu|9|64|(null)\ngpu|3|128|gpu:a100:4(S:0-1),nvme:1\ngpu|1|96|gpu:h100:8(S:0,1)\nold|4|8|(null)\n"


def tools(folder: Path, **answers: str | None) -> dict[str, str]:
    """Return an environment whose programs print these answers, or fail for None."""
    (folder / "bin").mkdir()
    for name, answer in answers.items():
        (folder / f"{name}.txt").write_text(answer or "")
        body = f"cat {folder}/{name}.txt" if answer is not None else "echo 'Connection refused' >&2; exit 1"
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    scontrol = f'#!/bin/sh\nif [ "$2" = config ]; then cat {folder}/config.txt; else cat {folder}/partition.txt; fi\n'
    (folder / "config.txt").write_text(CONFIG)
    (folder / "partition.txt").write_text(PARTITIONS)
    (folder / "bin/scontrol").write_text(scontrol)
    (folder / "bin/scontrol").chmod(0o755)
    return {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder)}


def test_parse_node_types_groups_nodes_by_cpus_and_gpus() -> None:
    assert parse_node_types(SINFO)["gpu"] == (
        NodeType(count=3, cpus=128, gpus=4, gpu_type="a100"),
        NodeType(count=1, cpus=96, gpus=8, gpu_type="h100"),
    )
    assert parse_node_types("p|2|32+|gpu:2\n")["p"] == (NodeType(count=2, cpus=32, gpus=2),)
    assert parse_node_types("p|1|8|gpu:a100:2,gpu:v100:1\n")["p"][0].gpus == 3
    assert parse_node_types("p|1|8|gpu:0\nq|1|8|cpugpu:2\n") == {
        "p": (NodeType(count=1, cpus=8),),
        "q": (NodeType(count=1, cpus=8),),
    }
    assert parse_node_types("welcome to west\n\n") == {}


def test_parse_accounts_merges_all_associations() -> None:
    answer = "mri|normal,long||\nmri|normal|40|14\nbio|normal||12\n"
    assert parse_accounts(answer, "mri\n") == Accounts(
        names=("mri", "bio"), default="mri", qos=("normal", "long"), max_submit=14
    )
    assert parse_accounts(answer, "\n").max_submit == 12
    assert parse_accounts("bio|long,normal||\n", "bio\n").max_submit is None
    assert parse_accounts("", "\n") == Accounts()


def test_parse_submit_plugins() -> None:
    assert parse_submit_plugins(CONFIG) == "lua,require_timelimit"
    assert parse_submit_plugins("JobSubmitPlugins        = (null)\n") == ""
    assert parse_submit_plugins("") == ""


def test_survey_site_joins_the_output_of_all_commands(tmp_path: Path) -> None:
    survey = survey_site(tools(tmp_path, sinfo=SINFO, sacctmgr="mri|normal||\n"))
    assert [partition.name for partition in survey.partitions] == ["cpu", "gpu"]
    assert survey.default_times == {"cpu": "00:10:00"}
    assert survey.alloc_nodes == {"gpu": "login[1-2]"}
    assert survey.site.cluster == "west"
    assert survey.accounts is not None
    assert survey.accounts.names == ("mri",)


def test_survey_site_without_accounting_gives_the_reason(tmp_path: Path) -> None:
    survey = survey_site(tools(tmp_path, sinfo=SINFO, sacctmgr=None))
    assert survey.accounts is None
    assert "accounting database" in survey.no_accounts
    assert "\n" not in survey.no_accounts


def test_survey_site_without_sinfo_raises(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="sinfo"):
        survey_site(tools(tmp_path, sinfo=None))


@pytest.mark.slurm
def test_survey_site_of_a_real_cluster(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(site="strict")
    survey = survey_site(cluster.env())
    assert [partition.name for partition in survey.partitions] == ["low", "high"]
    assert survey.nodes["low"] == (NodeType(count=2, cpus=8, gpus=4),)
    assert (survey.default_times, survey.alloc_nodes) == ({}, {})
    assert survey.submit_plugins == "lua"
    assert survey.accounts is None and survey.no_accounts
