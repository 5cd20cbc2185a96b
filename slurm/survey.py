"""What a cluster tells about itself on its login node: partitions and their nodes, accounts, who may submit."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm import client
from hsadml_dist.slurm.site import Partition, SlurmSite, parse_site

GPU = re.compile(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)")


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of nodes of a partition: those with the same CPUs and GPUs.

    Attributes:
        count: How many.
        cpus: CPUs of each.
        gpus: GPUs of each.
        gpu_type: The site's name for them; empty where it gives none.
    """

    count: int
    cpus: int
    gpus: int = 0
    gpu_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """What the accounting database says of a user.

    Attributes:
        names: Accounts that may be charged.
        default: The one that is charged where a job names none; empty if there is none.
        qos: Qualities of service that may be asked for.
        max_submit: Number of jobs that may be queued at a time on the default account, without one the least of all
            accounts'; None: no limit.
    """

    names: tuple[str, ...] = ()
    default: str = ""
    qos: tuple[str, ...] = ()
    max_submit: int | None = None


@dataclass(frozen=True, kw_only=True)
class SiteSurvey:
    """All that was asked.

    Attributes:
        site: The controller's settings.
        nodes: The kinds of nodes of each partition that this user may see.
        default_times: Time limit of jobs that name none, by partition, as Slurm writes it; only where one is set.
        alloc_nodes: Nodes from which jobs may be submitted, by partition; only where they are limited.
        submit_plugins: Programs of the site that judge each job.
        accounts: What the accounting says; None where there is none that answers.
        no_accounts: Why not, in words.
    """

    site: SlurmSite
    nodes: Mapping[str, tuple[NodeType, ...]] = field(default_factory=dict)
    default_times: Mapping[str, str] = field(default_factory=dict)
    alloc_nodes: Mapping[str, str] = field(default_factory=dict)
    submit_plugins: str = ""
    accounts: Accounts | None = None
    no_accounts: str = ""

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The partitions that this user may see and that are up, in Slurm's order."""
        return tuple(one for one in self.site.partitions.values() if one.name in self.nodes and one.is_up)


def survey_site(env: Mapping[str, str] | None = None) -> SiteSurvey:
    """Ask scontrol, sinfo and sacctmgr.

    Raises:
        ClusterError: Slurm is absent, or its controller does not answer. Accounting may be missing.
    """
    config = client.run_command(["scontrol", "show", "config"], env)
    partitions = client.run_command(["scontrol", "--oneliner", "show", "partition"], env)
    # sinfo leaves out what is hidden from the user, and a + marks the least of nodes that differ: --exact splits them.
    sinfo = client.run_command(["sinfo", "--noheader", "--exact", "--format=%R|%D|%c|%G"], env)
    site = parse_site(config, partitions)
    accounts, reason = _accounts(site, env)
    return SiteSurvey(
        site=site,
        nodes=parse_node_types(sinfo),
        default_times=dict(_fields(partitions, "DefaultTime", {"", "NONE"})),
        alloc_nodes=dict(_fields(partitions, "AllocNodes", {"", "ALL"})),
        submit_plugins=parse_submit_plugins(config),
        accounts=accounts,
        no_accounts=reason,
    )


def parse_node_types(answer: str) -> dict[str, tuple[NodeType, ...]]:
    """Read sinfo's lines ``PARTITION|NODES|CPUS|GRES``: the kinds of nodes of each partition."""
    found: dict[str, tuple[NodeType, ...]] = {}
    for line in answer.splitlines():
        words = line.split("|")
        if len(words) != 4 or not words[1].isdecimal():
            continue
        gpus = GPU.findall(words[3])
        kind = NodeType(
            count=int(words[1]),
            cpus=int(words[2].rstrip("+") or 0),
            gpus=sum(int(number) for _, number in gpus),
            gpu_type=gpus[0][0] if gpus else "",
        )
        found[words[0]] = (*found.get(words[0], ()), kind)
    return found


def parse_submit_plugins(config: str) -> str:
    """Return the programs that judge each job, from ``scontrol show config``; empty if there are none."""
    match = re.search(r"^JobSubmitPlugins\s*= (.*)$", config, flags=re.MULTILINE)
    return "" if match is None or match.group(1).strip() in ("", "(null)") else match.group(1).strip()


def parse_accounts(associations: str, default: str) -> Accounts:
    """Read sacctmgr's lines.

    Args:
        associations: ``ACCOUNT|QOS,QOS|MAXSUBMIT|GRPSUBMIT`` of the user.
        default: The user's default account.
    """
    rows = [line.split("|") for line in associations.splitlines() if line.count("|") == 3]
    default = default.strip().partition("\n")[0]
    # A limit holds for its account alone.
    charged = [row for row in rows if row[0] == default] or rows
    limits = [int(word) for row in charged for word in row[2:] if word.isdecimal()]
    return Accounts(
        names=_distinct(row[0] for row in rows),
        default=default,
        qos=_distinct(qos for row in rows for qos in row[1].split(",")),
        max_submit=min(limits, default=None),
    )


def _accounts(site: SlurmSite, env: Mapping[str, str] | None) -> tuple[Accounts | None, str]:
    """Return what the accounting says, or why it says nothing."""
    if not site.has_accounting:
        return None, "this cluster keeps no accounting database"
    user = getpass.getuser()
    ask = ["sacctmgr", "--noheader", "--parsable2", "show"]
    of_cluster = [f"cluster={site.cluster}"] if site.cluster else []
    try:
        form = "format=Account,QOS,MaxSubmit,GrpSubmit"
        associations = client.run_command([*ask, "assoc", f"user={user}", *of_cluster, form], env)
        default = client.run_command([*ask, "user", user, "format=DefaultAccount"], env)
    except ClusterError:
        return None, f"the accounting database does not answer (`sacctmgr show user {user}` says why)"
    return parse_accounts(associations, default), ""


def _fields(partitions: str, name: str, nothing: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (partition, value) of a field of ``scontrol --oneliner show partition`` where it says something."""
    for line in partitions.splitlines():
        of = dict(word.partition("=")[::2] for word in line.split())
        if "PartitionName" in of and of.get(name, "") not in nothing:
            yield of["PartitionName"], of[name]


def _distinct(words: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word))


def gpu_node_types(nodes: Sequence[NodeType]) -> tuple[NodeType, ...]:
    """Return the kinds of nodes that have GPUs."""
    return tuple(kind for kind in nodes if kind.gpus)
