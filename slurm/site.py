"""A cluster's Slurm settings, partitions, nodes and accounts, as queried on its login node."""

from __future__ import annotations

import contextlib
import getpass
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm import client
from hsadml_dist.slurm.sbatch import parse_time_limit

DEFAULT_CREDENTIAL_SECONDS = 120
"""Slurm's default where AuthInfo does not set cred_expire."""
GPU_GRES = re.compile(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition of the cluster.

    Attributes:
        is_default: True for the partition of jobs that name none.
        is_up: True if jobs start there.
        max_seconds: Longest time limit; None means no limit.
        grace_seconds: Time between the signal of a preemption and the end of the job.
        preempt_mode: Fate of a preempted job: ``OFF``, ``REQUEUE``, ``CANCEL``, ``SUSPEND``, ``GANG``.
        cpus: Number of CPUs of all nodes.
    """

    name: str
    is_default: bool = False
    is_up: bool = True
    max_seconds: int | None = None
    grace_seconds: int = 0
    preempt_mode: str = "OFF"
    nodes: int = 0
    cpus: int = 0


@dataclass(frozen=True, kw_only=True)
class SlurmSite:
    """The settings of a cluster that decide how a run is stopped and resumed.

    Attributes:
        requeue_exit: Exit codes after which a batch job is requeued.
        requeue_exit_hold: Exit codes after which it is requeued and held.
        preempt_mode: Fate of preempted jobs where the partition does not set it.
        credential_seconds: Lifetime of a credential; a requeued job waits one second longer.
        kill_wait_seconds: Time between SIGTERM and SIGKILL once Slurm ends a job.
        min_job_age_seconds: How long the controller remembers a job that has ended.
        user_signal: True if a preempted job gets the signal of its ``--signal`` option instead of SIGTERM.
        partitions: Partitions by name, in Slurm's order.
    """

    cluster: str = ""
    version: str = ""
    requeue_exit: frozenset[int] = frozenset()
    requeue_exit_hold: frozenset[int] = frozenset()
    preempt_mode: str = "OFF"
    credential_seconds: int = DEFAULT_CREDENTIAL_SECONDS
    kill_wait_seconds: int = 30
    min_job_age_seconds: int = 300
    user_signal: bool = False
    has_accounting: bool = False
    partitions: Mapping[str, Partition] = field(default_factory=dict)

    def partition(self, name: str | None) -> Partition | None:
        """Return the partition ``name``, or the default one for None; None if there is none."""
        if name is not None:
            return self.partitions.get(name)
        return next((one for one in self.partitions.values() if one.is_default), None)


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """The nodes of a partition that have the same CPUs and GPUs; ``gpu_type`` is the site's name of these, or empty."""

    count: int
    cpus: int
    gpus: int = 0
    gpu_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """A user's entries in the accounting database.

    Attributes:
        names: Accounts that may be charged.
        default: Account of jobs that name none; empty if there is none.
        max_submit: Number of jobs that may be queued at a time on the default account, or without one the smallest
            limit of all accounts; None means no limit.
    """

    names: tuple[str, ...] = ()
    default: str = ""
    qos: tuple[str, ...] = ()
    max_submit: int | None = None


@dataclass(frozen=True, kw_only=True)
class SiteSurvey:
    """Everything that a login node reports about the cluster.

    Attributes:
        site: Settings of the controller.
        nodes: Node types of each partition that this user may see.
        default_times: Time limit of jobs that set none, by partition, as Slurm prints it; only where one is set.
        alloc_nodes: Nodes from which jobs may be submitted, by partition; only where they are limited.
        submit_plugins: The site's plug-ins that check each job.
        accounts: Accounts of this user; None if no accounting database answers.
        no_accounts: Why none does.
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


def try_query_site(env: Mapping[str, str] | None = None) -> SlurmSite | None:
    """Return the settings of the controller; None if Slurm is not installed or does not answer."""
    with contextlib.suppress(ClusterError):
        return query_site(env)
    return None


def query_site(env: Mapping[str, str] | None = None) -> SlurmSite:
    """Return the settings of the controller, from two short queries.

    Raises:
        ClusterError: Slurm is not installed or does not answer.
    """
    return parse_site(*_query_controller(env))


def survey_site(env: Mapping[str, str] | None = None) -> SiteSurvey:
    """Return what scontrol, sinfo and sacctmgr report; accounts may be missing.

    Raises:
        ClusterError: Slurm is not installed, or its controller does not answer.
    """
    config, partitions = _query_controller(env)
    # sinfo leaves out what is hidden from the user. Without --exact it merges nodes that differ and marks them by +.
    sinfo = client.run_command(["sinfo", "--noheader", "--exact", "--format=%R|%D|%c|%G"], env)
    site = parse_site(config, partitions)
    accounts, no_accounts = _query_accounts(site, env)
    return SiteSurvey(
        site=site,
        nodes=parse_node_types(sinfo),
        default_times=dict(_set_fields(partitions, "DefaultTime", {"", "NONE"})),
        alloc_nodes=dict(_set_fields(partitions, "AllocNodes", {"", "ALL"})),
        submit_plugins=parse_submit_plugins(config),
        accounts=accounts,
        no_accounts=no_accounts,
    )


def submit_limit(user: str, env: Mapping[str, str] | None = None) -> int | None:
    """Return the smallest limit of the accounting database on a user's jobs at a time; None means no limit.

    Raises:
        ClusterError: There is no accounting database, or it does not answer.
    """
    argv = ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}", "format=MaxSubmit,GrpSubmit"]
    return parse_submit_limit(client.run_command(argv, env))


def parse_site(config: str, partitions: str = "") -> SlurmSite:
    """Parse the output of ``scontrol show config`` and ``scontrol --oneliner show partition``."""
    of = _parse_config(config)
    expire = re.search(r"\bcred_expire=(\d+)", of.get("AuthInfo", ""))
    preempts = not of.get("PreemptType", "").endswith("none")
    found = [_parse_partition(line, preempts) for line in partitions.splitlines() if line.startswith("PartitionName=")]
    return SlurmSite(
        cluster=of.get("ClusterName", ""),
        version=of.get("SLURM_VERSION", ""),
        requeue_exit=_parse_exit_codes(of.get("RequeueExit", "")),
        requeue_exit_hold=_parse_exit_codes(of.get("RequeueExitHold", "")),
        preempt_mode=of.get("PreemptMode", "OFF"),
        credential_seconds=int(expire.group(1)) if expire else DEFAULT_CREDENTIAL_SECONDS,
        kill_wait_seconds=_leading_int(of.get("KillWait"), 30),
        min_job_age_seconds=_leading_int(of.get("MinJobAge"), 300),
        user_signal="preempt_send_user_signal" in of.get("SlurmctldParameters", ""),
        has_accounting=of.get("AccountingStorageType", "").endswith("slurmdbd"),
        partitions={partition.name: partition for partition in found},
    )


def parse_submit_limit(answer: str) -> int | None:
    """Return the smallest number in the output of ``sacctmgr --parsable2``; None if there is none."""
    return min(map(int, re.findall(r"\d+", answer)), default=None)


def parse_node_types(answer: str) -> dict[str, tuple[NodeType, ...]]:
    """Parse sinfo's lines ``PARTITION|NODES|CPUS|GRES`` into the node types of each partition."""
    found: dict[str, tuple[NodeType, ...]] = {}
    for name, count, cpus, gres in re.findall(r"^([^|\n]*)\|(\d+)\|(\d*)\+?\|([^|\n]*)$", answer, flags=re.MULTILINE):
        gpus = GPU_GRES.findall(gres)
        total, gpu_type = sum(int(number) for _, number in gpus), gpus[0][0] if gpus else ""
        node_type = NodeType(count=int(count), cpus=int(cpus or 0), gpus=total, gpu_type=gpu_type)
        found[name] = (*found.get(name, ()), node_type)
    return found


def parse_submit_plugins(config: str) -> str:
    """Return JobSubmitPlugins from ``scontrol show config``; empty if there are none."""
    value = _parse_config(config).get("JobSubmitPlugins", "")
    return "" if value == "(null)" else value


def parse_accounts(associations: str, default: str) -> Accounts:
    """Parse the output of sacctmgr.

    Args:
        associations: Lines ``ACCOUNT|QOS,QOS|MAXSUBMIT|GRPSUBMIT`` of the user.
        default: The user's default account.
    """
    rows = [line.split("|") for line in associations.splitlines() if line.count("|") == 3]
    default = default.strip().partition("\n")[0]
    # A limit holds for its account alone.
    charged = [row for row in rows if row[0] == default] or rows
    limits = [int(value) for row in charged for value in row[2:] if value.isdecimal()]
    return Accounts(
        names=_distinct(row[0] for row in rows),
        default=default,
        qos=_distinct(qos for row in rows for qos in row[1].split(",")),
        max_submit=min(limits, default=None),
    )


def gpu_node_types(nodes: Sequence[NodeType]) -> tuple[NodeType, ...]:
    """Return the node types that have GPUs."""
    return tuple(node_type for node_type in nodes if node_type.gpus)


def _parse_config(config: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)\s*= ?(.*?)\s*$", config, flags=re.MULTILINE))


def _query_controller(env: Mapping[str, str] | None) -> tuple[str, str]:
    config = client.run_command(["scontrol", "show", "config"], env)
    return config, client.run_command(["scontrol", "--oneliner", "show", "partition"], env)


def _query_accounts(site: SlurmSite, env: Mapping[str, str] | None) -> tuple[Accounts | None, str]:
    """Return the accounts, or None and the reason."""
    if not site.has_accounting:
        return None, "this cluster keeps no accounting database"
    user = getpass.getuser()
    show = ["sacctmgr", "--noheader", "--parsable2", "show"]
    cluster = [f"cluster={site.cluster}"] if site.cluster else []
    try:
        fields = "format=Account,QOS,MaxSubmit,GrpSubmit"
        associations = client.run_command([*show, "assoc", f"user={user}", *cluster, fields], env)
        default = client.run_command([*show, "user", user, "format=DefaultAccount"], env)
    except ClusterError:
        return None, f"the accounting database does not answer (try `sacctmgr show user {user}`)"
    return parse_accounts(associations, default), ""


def _parse_partition(line: str, preempts: bool) -> Partition:
    of = _fields(line)
    return Partition(
        name=of["PartitionName"],
        is_default=of.get("Default") == "YES",
        is_up=of.get("State", "UP") == "UP",
        max_seconds=_parse_limit(of.get("MaxTime", "UNLIMITED")),
        grace_seconds=_leading_int(of.get("GraceTime"), 0),
        preempt_mode=of.get("PreemptMode", "OFF") if preempts else "OFF",
        nodes=_leading_int(of.get("TotalNodes"), 0),
        cpus=_leading_int(of.get("TotalCPUs"), 0),
    )


def _set_fields(partitions: str, name: str, unset: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (partition, value) of a field of ``scontrol --oneliner show partition`` where it is set."""
    for of in map(_fields, partitions.splitlines()):
        if "PartitionName" in of and of.get(name, "") not in unset:
            yield of["PartitionName"], of[name]


def _fields(line: str) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in line.split())


def _parse_exit_codes(text: str) -> frozenset[int]:
    """Parse ``1,70-75,85``."""
    spans = [span.partition("-") for span in text.split(",") if re.fullmatch(r"\s*\d+(-\d+)?\s*", span)]
    return frozenset(code for low, _, high in spans for code in range(int(low), int(high or low) + 1))


def _leading_int(text: str | None, default: int) -> int:
    match = re.match(r"\d+", text or "")
    return int(match.group()) if match else default


def _parse_limit(text: str) -> int | None:
    with contextlib.suppress(ValueError):
        return parse_time_limit(text)
    return None


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))
