"""Which profile a cluster gets, why, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.errors import ConfigError
from hsadml_dist.slurm.profile_init import ProfileDraft, draft_profile, format_time_limit
from hsadml_dist.slurm.profiles import load_profile
from hsadml_dist.slurm.sbatch import parse_time_limit
from hsadml_dist.slurm.site import Accounts, NodeType, Partition, SiteSurvey, SlurmSite

GPUS = (NodeType(count=4, cpus=64, gpus=4, gpu_type="a100"),)
CPUS = (NodeType(count=9, cpus=32),)


def site(*places: Partition, **more: Any) -> SlurmSite:
    places = places or (Partition(name="gpu", is_default=True, nodes=4),)
    return SlurmSite(
        **{"cluster": "west", "version": "23.11", "partitions": {place.name: place for place in places}} | more
    )


def survey(of: SlurmSite | None = None, **more: Any) -> SiteSurvey:
    return SiteSurvey(**{"site": of or site(), "nodes": {"gpu": GPUS}, "no_accounts": "no database"} | more)


def reasons(made: ProfileDraft) -> dict[str, str]:
    return {choice.key: choice.reason for choice in made.chosen}


def advice(made: ProfileDraft) -> dict[str, str]:
    return dict(made.unknown)


def test_the_text_is_a_profile_that_says_the_same(tmp_path: Path) -> None:
    accounts = Accounts(names=("mri: x # y", "b"), default="mri: x # y", qos=("normal", "long"))
    made = draft_profile(survey(accounts=accounts, alloc_nodes={"gpu": "login1"}, default_times={"gpu": "01:00:00"}))
    path = tmp_path / "p.yaml"
    path.write_text(made.text())
    assert load_profile(str(path)) == made.profile
    assert made.profile.account == "mri: x # y"
    assert all(f"# {key}: {text}" in made.text() for key, text in made.unknown)


def test_the_default_partition_is_taken_unless_only_others_have_gpus() -> None:
    cpu, small, gpu = (
        Partition(name="cpu", is_default=True),
        Partition(name="s", nodes=1),
        Partition(name="gpu", nodes=4),
    )
    nodes = {"cpu": CPUS, "s": GPUS, "gpu": GPUS}
    made = draft_profile(survey(site(cpu, small, gpu), nodes=nodes))
    assert made.profile.partition == "gpu"
    assert reasons(made)["partition"] == "has GPUs; the default, cpu, has none; others: cpu, s"
    made = draft_profile(survey(site(cpu, small, gpu), nodes=nodes), "cpu")
    assert (made.profile.partition, made.profile.gres, made.profile.cpus_per_task) == ("cpu", None, None)
    assert "no GPUs in cpu" in advice(made)["gres"]
    assert draft_profile(survey(site(cpu), nodes={"cpu": CPUS})).profile.partition == "cpu"
    made = draft_profile(survey(site(Partition(name="gpu"), Partition(name="cpu")), nodes=nodes))
    assert reasons(made)["partition"] == "the first; the site names no default; others: cpu"


def test_a_partition_that_is_hidden_or_down_is_not_offered() -> None:
    places = (Partition(name="gpu", is_up=False), Partition(name="secret"))
    with pytest.raises(ConfigError, match="none is up that you may use"):
        draft_profile(survey(site(*places)))
    with pytest.raises(ConfigError, match=r"no partition 'gqu' that is up; there are: gpu \(did you mean 'gpu'\?\)"):
        draft_profile(survey(), "gqu")


def test_gpus_and_cpus_suit_the_weakest_node() -> None:
    mixed = (*GPUS, NodeType(count=1, cpus=96, gpus=8, gpu_type="h100"), NodeType(count=1, cpus=1))
    made = draft_profile(survey(nodes={"gpu": mixed}))
    assert (made.profile.gres, made.profile.cpus_per_task) == ("gpu:4", 12)
    assert reasons(made)["gres"] == "nodes have 4 or 8; to choose one of a100, h100: gpu:TYPE:4"
    assert draft_profile(survey(nodes={"gpu": (NodeType(count=1, cpus=2, gpus=4),)})).profile.cpus_per_task is None


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
def test_the_time_limit_is_at_most_a_day(longest: int | None, default: str | None, time: str | None) -> None:
    place = Partition(name="gpu", is_default=True, max_seconds=longest)
    made = draft_profile(survey(site(place), default_times={"gpu": default} if default else {}))
    assert made.profile.time == time


@pytest.mark.parametrize("seconds", [1, 59, 60, 3599, 86399, 86400, 90061, 10 * 86400])
def test_a_time_is_written_as_slurm_reads_it(seconds: int) -> None:
    assert parse_time_limit(format_time_limit(seconds)) == seconds


@pytest.mark.parametrize(
    ("accounts", "account", "said"),
    [
        (None, None, "no database; set it if your site bills jobs"),
        (Accounts(), None, "the accounting database knows none of yours; ask the site"),
        (Accounts(names=("a",)), "a", None),
        (Accounts(names=("a", "b"), default="b"), "b", None),
        (Accounts(names=("a", "b")), None, "you have no default; set one of a, b"),
    ],
)
def test_the_account_is_chosen_or_asked_for(accounts: Accounts | None, account: str | None, said: str | None) -> None:
    made = draft_profile(survey(accounts=accounts))
    assert made.profile.account == account
    assert advice(made).get("account") == said


PREEMPTED = Partition(name="gpu", is_default=True, preempt_mode="CANCEL")


@pytest.mark.parametrize(
    ("of", "more", "mode", "why"),
    [
        (site(), {}, "chain", "waits 121 s"),
        (site(credential_seconds=5), {}, "self", "back after 6 s"),
        (site(PREEMPTED, credential_seconds=5), {}, "chain", "PreemptMode=CANCEL"),
        (site(), {"alloc_nodes": {"gpu": "login1"}}, "self", "a chain submits from the nodes"),
        (site(), {"alloc_nodes": {"other": "login1"}}, "chain", "waits 121 s"),
        (site(), {"accounts": Accounts(max_submit=1)}, "self", "you may have 1 at a time"),
        (site(), {"accounts": Accounts(max_submit=2)}, "chain", "waits 121 s"),
        (site(PREEMPTED), {"alloc_nodes": {"gpu": "login1"}}, "none", "neither can work: a chain submits"),
        (site(requeue_exit=frozenset({0})), {}, "none", "neither can work: the site puts finished jobs back"),
    ],
)
def test_how_jobs_come_back_follows_from_the_site(of: SlurmSite, more: dict[str, Any], mode: str, why: str) -> None:
    made = draft_profile(survey(of, **more))
    assert made.profile.requeue == mode
    assert why in reasons(made)["requeue"]
    assert ("sbatch_on_nodes" in advice(made)) == (mode == "chain")
    assert made.profile.sbatch_on_nodes is (False if "gpu" in more.get("alloc_nodes", {}) else None)


def test_a_plug_in_that_judges_jobs_is_named() -> None:
    made = draft_profile(survey(submit_plugins="lua"))
    assert advice(made)["sbatch_on_nodes"].startswith("a plug-in judges each job here (lua); `hsadml doctor --nodes 1`")


def test_choices_of_quality_are_named() -> None:
    made = draft_profile(survey(accounts=Accounts(names=("a",), qos=("normal", "long"))))
    assert advice(made)["qos"] == "the account's default is taken; you may set one of normal, long"
