"""Drafts of profiles: the chosen settings and their reasons, and the advice for the undecided ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.errors import ConfigError
from hsadml_dist.slurm.profile_init import ProfileDraft, choose_requeue_mode, draft_profile, format_time_limit
from hsadml_dist.slurm.profiles import load_profile
from hsadml_dist.slurm.sbatch import parse_time_limit
from hsadml_dist.slurm.site import Accounts, NodeType, Partition, SiteSurvey, SlurmSite

GPUS = (NodeType(count=4, cpus=64, gpus=4, gpu_type="a100"),)
CPUS = (NodeType(count=9, cpus=32),)


def site(*partitions: Partition, **more: Any) -> SlurmSite:
    partitions = partitions or (Partition(name="gpu", is_default=True, nodes=4),)
    by_name = {partition.name: partition for partition in partitions}
    return SlurmSite(**{"cluster": "west", "version": "23.11", "partitions": by_name} | more)


def survey(of: SlurmSite | None = None, **more: Any) -> SiteSurvey:
    return SiteSurvey(**{"site": of or site(), "nodes": {"gpu": GPUS}, "no_accounts": "no database"} | more)


def reasons(draft: ProfileDraft) -> dict[str, str]:
    return {choice.key: choice.reason for choice in draft.chosen}


def advice(draft: ProfileDraft) -> dict[str, str]:
    return dict(draft.unknown)


def test_draft_text_loads_as_its_profile(tmp_path: Path) -> None:
    accounts = Accounts(names=("mri: x # y", "b"), default="mri: x # y", qos=("normal", "long"))
    draft = draft_profile(survey(accounts=accounts, alloc_nodes={"gpu": "login1"}, default_times={"gpu": "01:00:00"}))
    path = tmp_path / "p.yaml"
    path.write_text(draft.text())
    assert load_profile(str(path)) == draft.profile
    assert draft.profile.account == "mri: x # y"
    assert all(f"# {key}: {text}" in draft.text() for key, text in draft.unknown)


CPU, SMALL, GPU = Partition(name="cpu", is_default=True), Partition(name="s", nodes=1), Partition(name="gpu", nodes=4)
MIXED_NODES = {"cpu": CPUS, "s": GPUS, "gpu": GPUS}


def test_draft_prefers_the_largest_partition_with_gpus_to_a_default_without() -> None:
    draft = draft_profile(survey(site(CPU, SMALL, GPU), nodes=MIXED_NODES))
    assert draft.profile.partition == "gpu"
    assert "cpu" in reasons(draft)["partition"] and reasons(draft)["partition"].endswith("others: cpu, s")


def test_draft_obeys_the_requested_partition() -> None:
    draft = draft_profile(survey(site(CPU, SMALL, GPU), nodes=MIXED_NODES), "cpu")
    assert (draft.profile.partition, draft.profile.gres, draft.profile.cpus_per_task) == ("cpu", None, None)
    assert "no GPUs in cpu" in advice(draft)["gres"]


def test_draft_uses_the_default_partition_or_the_first() -> None:
    assert draft_profile(survey(site(CPU), nodes={"cpu": CPUS})).profile.partition == "cpu"
    without_default = site(Partition(name="gpu"), Partition(name="cpu"))
    assert draft_profile(survey(without_default, nodes=MIXED_NODES)).profile.partition == "gpu"


def test_draft_refuses_partitions_that_are_hidden_or_down() -> None:
    hidden_or_down = (Partition(name="gpu", is_up=False), Partition(name="secret"))
    with pytest.raises(ConfigError) as caught:
        draft_profile(survey(site(*hidden_or_down)))
    assert caught.value.faults[0].key == "partition"
    with pytest.raises(ConfigError, match=r"'gqu'.*allowed: gpu .*'gpu'"):
        draft_profile(survey(), "gqu")


def test_draft_fits_the_smallest_node_with_gpus() -> None:
    mixed = (*GPUS, NodeType(count=1, cpus=96, gpus=8, gpu_type="h100"), NodeType(count=1, cpus=1))
    draft = draft_profile(survey(nodes={"gpu": mixed}))
    assert (draft.profile.gres, draft.profile.cpus_per_task) == ("gpu:4", 12)
    assert "4 or 8" in reasons(draft)["gres"] and "a100, h100" in reasons(draft)["gres"]
    few_cpus = (NodeType(count=1, cpus=2, gpus=4),)
    assert draft_profile(survey(nodes={"gpu": few_cpus})).profile.cpus_per_task is None


@pytest.mark.parametrize(
    ("longest", "default", "time"),
    [
        (None, None, None),
        (None, "00:10:00", "1-00:00:00"),
        (7 * 86400, None, "1-00:00:00"),
        (4 * 3600, None, "04:00:00"),
        (4 * 3600, "00:10:00", "04:00:00"),
    ],
)
def test_draft_time_limit_is_at_most_a_day(longest: int | None, default: str | None, time: str | None) -> None:
    partition = Partition(name="gpu", is_default=True, max_seconds=longest)
    draft = draft_profile(survey(site(partition), default_times={"gpu": default} if default else {}))
    assert draft.profile.time == time


@pytest.mark.parametrize("seconds", [1, 59, 60, 3599, 86399, 86400, 90061, 10 * 86400])
def test_format_time_limit_is_the_inverse_of_parse_time_limit(seconds: int) -> None:
    assert parse_time_limit(format_time_limit(seconds)) == seconds


@pytest.mark.parametrize(
    ("accounts", "account", "fact"),
    [
        (None, None, "no database"),
        (Accounts(), None, "accounting database"),
        (Accounts(names=("a",)), "a", None),
        (Accounts(names=("a", "b"), default="b"), "b", None),
        (Accounts(names=("a", "b")), None, "one of a, b"),
    ],
)
def test_draft_chooses_the_account_or_advises(accounts: Accounts | None, account: str | None, fact: str | None) -> None:
    draft = draft_profile(survey(accounts=accounts))
    assert draft.profile.account == account
    assert ("account" in advice(draft)) == (fact is not None)
    assert fact is None or fact in advice(draft)["account"]


CANCELLING = Partition(name="gpu", is_default=True, preempt_mode="CANCEL")


@pytest.mark.parametrize(
    ("of", "more", "mode", "fact"),
    [
        (site(), {}, "chain", "121 s"),
        (site(credential_seconds=5), {}, "self", "6 s"),
        (site(CANCELLING, credential_seconds=5), {}, "chain", "PreemptMode=CANCEL"),
        (site(), {"alloc_nodes": {"gpu": "login1"}}, "self", "AllocNodes"),
        (site(), {"alloc_nodes": {"other": "login1"}}, "chain", "121 s"),
        (site(), {"accounts": Accounts(max_submit=1)}, "self", "1 (MaxSubmitJobs)"),
        (site(), {"accounts": Accounts(max_submit=2)}, "chain", "121 s"),
        (site(CANCELLING), {"alloc_nodes": {"gpu": "login1"}}, "none", "AllocNodes"),
        (site(requeue_exit=frozenset({0})), {}, "none", "RequeueExit"),
    ],
)
def test_draft_requeue_mode_follows_from_the_site(of: SlurmSite, more: dict[str, Any], mode: str, fact: str) -> None:
    draft = draft_profile(survey(of, **more))
    assert draft.profile.requeue == mode
    assert fact in reasons(draft)["requeue"]
    assert choose_requeue_mode(survey(of, **more), of.partitions["gpu"])[0] == mode
    assert ("sbatch_on_nodes" in advice(draft)) == (mode == "chain")
    assert draft.profile.sbatch_on_nodes is (False if "gpu" in more.get("alloc_nodes", {}) else None)


def test_draft_advice_names_submit_plugins() -> None:
    assert "(lua)" in advice(draft_profile(survey(submit_plugins="lua")))["sbatch_on_nodes"]


def test_draft_advice_names_the_qualities_of_service() -> None:
    draft = draft_profile(survey(accounts=Accounts(names=("a",), qos=("normal", "long"))))
    assert advice(draft)["qos"].endswith("normal, long")
