"""A cluster's Slurm settings, partitions, nodes and accounts, as queried on its login node."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hsadml_dist.errors import ClusterError, ExitCode
from hsadml_dist.slurm import client
from hsadml_dist.slurm.sbatch import parse_time_limit

DEFAULT_CREDENTIAL_SECONDS = 120
"""What Slurm takes where AuthInfo does not say cred_expire."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """What a partition allows.

    Attributes:
        name: Its name.
        is_default: Whether a job that names no partition goes there.
        is_up: Whether jobs start there.
        max_seconds: Longest time limit; None: no limit.
        grace_seconds: From the notice of a preemption to its end.
        preempt_mode: What becomes of a preempted job: ``OFF``, ``REQUEUE``, ``CANCEL``, ``SUSPEND``, ``GANG``.
        nodes: Number of its nodes.
        cpus: Number of their CPUs.
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
    """A computing centre's settings.

    Attributes:
        cluster: Slurm's name for the cluster.
        version: Slurm's version.
        requeue_exit: Exit codes after which a batch job is put back into the queue.
        requeue_exit_hold: Exit codes after which it is put back and held.
        job_requeue: Whether jobs that do not say may be requeued.
        preempt_mode: What becomes of preempted jobs where their partition does not say.
        credential_seconds: Life of a credential; a requeued job waits one second longer than this.
        kill_wait_seconds: From SIGTERM to SIGKILL once Slurm ends a job.
        min_job_age_seconds: How long the controller remembers a job that has ended.
        user_signal: Whether a preempted job gets the signal that it asked for by ``--signal``, not SIGTERM.
        has_accounting: Whether there is an accounting database.
        partitions: By name, in Slurm's order.
    """

    cluster: str = ""
    version: str = ""
    requeue_exit: frozenset[int] = frozenset()
    requeue_exit_hold: frozenset[int] = frozenset()
    job_requeue: bool = True
    preempt_mode: str = "OFF"
    credential_seconds: int = DEFAULT_CREDENTIAL_SECONDS
    kill_wait_seconds: int = 30
    min_job_age_seconds: int = 300
    user_signal: bool = False
    has_accounting: bool = False
    partitions: Mapping[str, Partition] = field(default_factory=dict)

    def partition(self, name: str | None) -> Partition | None:
        """Return the partition called ``name``, without a name the default one; None if there is none."""
        if name is not None:
            return self.partitions.get(name)
        return next((one for one in self.partitions.values() if one.is_default), None)


def try_query_site(env: Mapping[str, str] | None = None) -> SlurmSite | None:
    """Ask the controller, in two short queries; None where Slurm is absent or does not answer."""
    try:
        return query_site(env)
    except ClusterError:
        return None


def query_site(env: Mapping[str, str] | None = None) -> SlurmSite:
    """Ask the controller, in two short queries.

    Raises:
        ClusterError: Slurm is absent or does not answer.
    """
    config = client.run_command(["scontrol", "show", "config"], env)
    return parse_site(config, client.run_command(["scontrol", "--oneliner", "show", "partition"], env))


def parse_site(config: str, partitions: str = "") -> SlurmSite:
    """Read the answers of ``scontrol show config`` and ``scontrol --oneliner show partition``."""
    of = dict(re.findall(r"^(\w+)\s*= ?(.*?)\s*$", config, flags=re.MULTILINE))
    expire = re.search(r"\bcred_expire=(\d+)", of.get("AuthInfo", ""))
    preempts = not of.get("PreemptType", "").endswith("none")
    found = [_partition(line, preempts) for line in partitions.splitlines() if line.startswith("PartitionName=")]
    return SlurmSite(
        cluster=of.get("ClusterName", ""),
        version=of.get("SLURM_VERSION", ""),
        requeue_exit=_codes(of.get("RequeueExit", "")),
        requeue_exit_hold=_codes(of.get("RequeueExitHold", "")),
        job_requeue=of.get("JobRequeue", "1") != "0",
        preempt_mode=of.get("PreemptMode", "OFF"),
        credential_seconds=int(expire.group(1)) if expire else DEFAULT_CREDENTIAL_SECONDS,
        kill_wait_seconds=_seconds(of.get("KillWait"), 30),
        min_job_age_seconds=_seconds(of.get("MinJobAge"), 300),
        user_signal="preempt_send_user_signal" in of.get("SlurmctldParameters", ""),
        has_accounting=of.get("AccountingStorageType", "").endswith("slurmdbd"),
        partitions={partition.name: partition for partition in found},
    )


def requeue_problem(site: SlurmSite, mode: str, partition: str | None = None) -> str | None:
    """Return in one line why a run cannot come back, or stay away, as ``mode`` promises at this site; None if it can.

    Args:
        site: See :func:`try_query_site`.
        mode: ``chain``, ``self`` or ``none``.
        partition: The partition that is asked for; None: the site's default.
    """
    option = _option_with(site, ExitCode.SUCCESS)
    if option is not None:
        return (
            f"--requeue {mode}: this site puts back jobs that exit with 0 ({option}), so a run that is done would "
            f"come back again and again; ask the site to take 0 out"
        )
    if mode == "none":
        return _none_problem(site)
    return _self_problem(site, partition) if mode == "self" else None


def requeue_warning(site: SlurmSite, mode: str) -> str | None:
    """Return in one line what is different at this site about ``mode``, though it works; None if nothing is."""
    codes = {ExitCode.USER_ERROR, ExitCode.USAGE_ERROR, ExitCode.INTERNAL_ERROR, ExitCode.RUN_LOCKED}
    if site.requeue_exit & codes:
        return (
            f"--requeue {mode}: this site puts back jobs that exit with {_listed(site.requeue_exit & codes)} "
            f"(RequeueExit={_listed(site.requeue_exit)}): a job that has failed comes back once and leaves with 0, "
            f"so Slurm calls it COMPLETED"
        )
    return None


def submit_limit(user: str, env: Mapping[str, str] | None = None) -> int | None:
    """Return the smallest number of jobs that the accounting lets ``user`` have at a time; None: no limit.

    Raises:
        ClusterError: There is no accounting database, or it does not answer.
    """
    words = ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}", "format=MaxSubmit,GrpSubmit"]
    return parse_submit_limit(client.run_command(words, env))


def parse_submit_limit(answer: str) -> int | None:
    """Return the smallest number in the answer of ``sacctmgr --parsable2``; None if there is none."""
    return min(map(int, re.findall(r"\d+", answer)), default=None)


def _none_problem(site: SlurmSite) -> str | None:
    option = _option_with(site, ExitCode.STOPPED)
    if option is None:
        return None
    return (
        f"--requeue none: this site puts back jobs that exit with {ExitCode.STOPPED:d}, as a stopped run does "
        f"({option}), so it would not end with that code; use chain or self"
    )


def _option_with(site: SlurmSite, code: int) -> str | None:
    """Return the option by which jobs that exit with ``code`` are put back, as slurm.conf has it, or None."""
    for option, codes in (("RequeueExit", site.requeue_exit), ("RequeueExitHold", site.requeue_exit_hold)):
        if code in codes:
            return f"{option}={_listed(codes)}"
    return None


def _self_problem(site: SlurmSite, partition: str | None) -> str | None:
    known = site.partition(partition)
    if known is None or known.grace_seconds > 0 or known.preempt_mode != "CANCEL":
        return None
    return (
        f"--requeue self: jobs that are preempted in partition {known.name} end there and then and are not requeued "
        f"(PreemptMode=CANCEL, GraceTime=0), so they would not come back; use chain"
    )


def _partition(line: str, preempts: bool) -> Partition:
    of = dict(word.partition("=")[::2] for word in line.split())
    return Partition(
        name=of["PartitionName"],
        is_default=of.get("Default") == "YES",
        is_up=of.get("State", "UP") == "UP",
        max_seconds=_limit(of.get("MaxTime", "UNLIMITED")),
        grace_seconds=_seconds(of.get("GraceTime"), 0),
        preempt_mode=of.get("PreemptMode", "OFF") if preempts else "OFF",
        nodes=_count(of.get("TotalNodes")),
        cpus=_count(of.get("TotalCPUs")),
    )


def _codes(text: str) -> frozenset[int]:
    """Read ``1,70-75,85``."""
    spans = [span.partition("-") for span in text.split(",") if re.fullmatch(r"\s*\d+(-\d+)?\s*", span)]
    return frozenset(code for low, _, high in spans for code in range(int(low), int(high or low) + 1))


def _listed(codes: frozenset[int]) -> str:
    return ",".join(str(int(code)) for code in sorted(codes))


def _seconds(text: str | None, otherwise: int) -> int:
    match = re.match(r"\d+", text or "")
    return int(match.group()) if match else otherwise


def _limit(text: str) -> int | None:
    try:
        return parse_time_limit(text)
    except ValueError:
        return None


def _count(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


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
