"""Draft a profile from the survey of a cluster: the chosen settings with reasons, and what is still to decide.

Pure functions: nothing here talks to Slurm or writes a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hsadml_dist.config.yaml_loader import to_inline_yaml
from hsadml_dist.errors import ConfigError, Fault, did_you_mean
from hsadml_dist.slurm.job_records import RequeueMode
from hsadml_dist.slurm.profiles import Profile
from hsadml_dist.slurm.site import Accounts, NodeType, Partition, SiteSurvey, gpu_node_types
from hsadml_dist.slurm.submit import requeue_problem

MAX_REQUEUE_WAIT_SECONDS = 15
"""Where a requeued job waits no longer than this, a chain has no advantage."""
DAY_SECONDS = 24 * 3600
SIGNAL_LEAD = 120


@dataclass(frozen=True, kw_only=True)
class ProfileChoice:
    """A chosen setting and the reason for it."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProfileDraft:
    """A draft of a profile.

    Attributes:
        title: Name of the cluster and how the draft was made.
        unknown: (key, what to do) of settings that the cluster does not determine.
    """

    title: str
    chosen: tuple[ProfileChoice, ...]
    unknown: tuple[tuple[str, str], ...]

    @property
    def profile(self) -> Profile:
        """The profile with the chosen settings."""
        return Profile(**{choice.key: choice.value for choice in self.chosen})

    def text(self) -> str:
        """Return the YAML file: each setting with its reason, then the undecided ones as comments."""
        lines = [f"# {self.title}", "# Every key: docs/profiles.md. Check it with `hsadml doctor`.", ""]
        lines += [f"{choice.key}: {to_inline_yaml(choice.value)} # {choice.reason}" for choice in self.chosen]
        lines += ["", "# Not known from the cluster:"]
        lines += [f"# {key}: {text}" for key, text in self.unknown]
        return "\n".join(lines) + "\n"


def draft_profile(survey: SiteSurvey, partition: str | None = None) -> ProfileDraft:
    """Draft a profile for a cluster.

    Args:
        survey: Survey of the cluster.
        partition: Partition for the jobs; None means the default one, or one with GPUs if the default has none.

    Raises:
        ConfigError: There is no such partition, or none at all.
    """
    selected, reason = _choose_partition(survey, partition)
    node_types = survey.nodes[selected.name]
    requeue = tuple(_requeue_choices(survey, selected))
    chosen = (
        ProfileChoice(key="partition", value=selected.name, reason=reason),
        *_account_choices(survey.accounts),
        *_node_choices(node_types),
        *_time_choices(selected, survey.default_times.get(selected.name)),
        *requeue,
        ProfileChoice(key="signal_lead", value=SIGNAL_LEAD, reason="seconds for a save; `hsadml doctor` measures one"),
    )
    site = survey.site
    title = f"Cluster {site.cluster or 'without a name'}, Slurm {site.version}: written by `hsadml profile init`."
    unknown = tuple(_unknown(survey, requeue[-1].value, selected, node_types))
    return ProfileDraft(title=title, chosen=chosen, unknown=unknown)


def _choose_partition(survey: SiteSurvey, wanted: str | None) -> tuple[Partition, str]:
    """Return the partition and the reason for it."""
    partitions = survey.partitions
    names = [partition.name for partition in partitions]
    if not partitions:
        problem = "no partition is up that you may use; ask the site"
        raise ConfigError([Fault(where="cluster", key="partition", problem=problem)])
    if wanted is not None:
        if wanted not in names:
            problem = f"no partition {wanted!r} is up; allowed: {', '.join(names)}{did_you_mean(wanted, names)}"
            raise ConfigError([Fault(where="command line", key="--partition", problem=problem)])
        return partitions[names.index(wanted)], "your choice"
    chosen = next((partition for partition in partitions if partition.is_default), partitions[0])
    why = "the site's default" if chosen.is_default else "the first; the site has no default"
    with_gpus = [partition for partition in partitions if gpu_node_types(survey.nodes[partition.name])]
    if with_gpus and chosen not in with_gpus:
        why = f"has GPUs; the default, {chosen.name}, has none"
        chosen = max(with_gpus, key=lambda partition: partition.nodes)
    others = ", ".join(name for name in names if name != chosen.name)
    return chosen, why + (f"; others: {others}" if others else "")


def _account_choices(accounts: Accounts | None) -> Iterator[ProfileChoice]:
    if accounts is None or not accounts.names:
        return
    others = ", ".join(name for name in accounts.names if name != accounts.default)
    if accounts.default in accounts.names:
        reason = "your default" + (f"; others: {others}" if others else "")
        yield ProfileChoice(key="account", value=accounts.default, reason=reason)
    elif len(accounts.names) == 1:
        yield ProfileChoice(key="account", value=accounts.names[0], reason="your only account")


def _node_choices(node_types: tuple[NodeType, ...]) -> Iterator[ProfileChoice]:
    """Yield GPUs and CPUs of the smallest node with GPUs, so that every node with GPUs qualifies."""
    with_gpus = gpu_node_types(node_types)
    if not with_gpus:
        return
    gpus = min(node.gpus for node in with_gpus)
    models = sorted({node.gpu_type for node in with_gpus if node.gpu_type})
    counts = sorted({node.gpus for node in with_gpus})
    reason = "all GPUs of a node" if len(counts) == 1 else f"nodes have {' or '.join(map(str, counts))}"
    if len(models) > 1:
        reason += f"; to choose one of {', '.join(models)}: gpu:TYPE:{gpus}"
    yield ProfileChoice(key="gres", value=f"gpu:{gpus}", reason=reason)
    cpus = min(node.cpus // node.gpus for node in with_gpus)
    if cpus:
        yield ProfileChoice(key="cpus_per_task", value=cpus, reason="CPUs of a node per GPU, with one rank per GPU")


def _time_choices(partition: Partition, default_time: str | None) -> Iterator[ProfileChoice]:
    many_jobs = "a run continues over many jobs"
    if partition.max_seconds is None:
        if default_time is not None:
            reason = f"jobs without a time limit get {default_time}; {many_jobs}"
            yield ProfileChoice(key="time", value="1-00:00:00", reason=reason)
        return
    seconds = min(partition.max_seconds, DAY_SECONDS)
    is_limit = seconds == partition.max_seconds
    reason = "the limit of the partition" if is_limit else "the limit is longer, but short jobs start sooner"
    yield ProfileChoice(key="time", value=format_time_limit(seconds), reason=f"{reason}; {many_jobs}")


def format_time_limit(seconds: int) -> str:
    """Return seconds as a time limit for Slurm; ``parse_time_limit`` is the inverse."""
    days, rest = divmod(seconds, DAY_SECONDS)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def _requeue_choices(survey: SiteSurvey, partition: Partition) -> Iterator[ProfileChoice]:
    alloc_nodes = survey.alloc_nodes.get(partition.name)
    if alloc_nodes is not None:
        reason = f"{partition.name} accepts jobs from {alloc_nodes} only (AllocNodes)"
        yield ProfileChoice(key="sbatch_on_nodes", value=False, reason=reason)
    mode, reason = choose_requeue_mode(survey, partition)
    yield ProfileChoice(key="requeue", value=mode, reason=reason)


def choose_requeue_mode(survey: SiteSurvey, partition: Partition) -> tuple[RequeueMode, str]:
    """Return how stopped jobs should be resumed in a partition, and why."""
    why_no_chain = _why_no_chain(survey, partition)
    if why_no_chain is None:
        return _chain_or_self(survey, partition)
    if requeue_problem(survey.site, "self", partition.name) is None:
        return "self", why_no_chain
    return "none", f"neither chain nor self works: {why_no_chain}"


def _why_no_chain(survey: SiteSurvey, partition: Partition) -> str | None:
    if requeue_problem(survey.site, "chain", partition.name) is not None:
        return "the site requeues finished jobs (RequeueExit)"
    if partition.name in survey.alloc_nodes:
        return "a chain submits from the nodes, which this partition does not accept (AllocNodes)"
    limit = None if survey.accounts is None else survey.accounts.max_submit
    if limit is not None and limit < 2:
        return f"a chain keeps a second job queued, and your limit is {limit} (MaxSubmitJobs)"
    return None


def _chain_or_self(survey: SiteSurvey, partition: Partition) -> tuple[RequeueMode, str]:
    wait = survey.site.credential_seconds + 1
    if requeue_problem(survey.site, "self", partition.name) is not None:
        return "chain", f"{partition.name} cancels preempted jobs (PreemptMode={partition.preempt_mode})"
    if wait <= MAX_REQUEUE_WAIT_SECONDS:
        return "self", f"a requeued job starts after {wait} s (cred_expire), so no second job need be queued"
    return "chain", f"a requeued job waits {wait} s (cred_expire) before it may start; a successor starts at once"


def _unknown(
    survey: SiteSurvey, requeue: RequeueMode, partition: Partition, node_types: tuple[NodeType, ...]
) -> Iterator[tuple[str, str]]:
    yield from _unknown_account(survey)
    if requeue == "chain":
        plugins = survey.submit_plugins
        why = f"a plug-in checks each job here ({plugins})" if plugins else "unknown"
        yield "sbatch_on_nodes", f"{why}; test it with `hsadml doctor --nodes 1`; if false, set `requeue: self`"
    if not gpu_node_types(node_types):
        yield "gres", f"no GPUs in {partition.name}; cpus_per_task is 1 unless you set it"
    yield "modules", "modules that the nodes need, if any; `module avail` lists them"
    yield "scratch", "a folder on each node's own disk, such as /tmp/$USER/$SLURM_JOB_ID"
    yield "env", "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME: network between the nodes, where there are several"


def _unknown_account(survey: SiteSurvey) -> Iterator[tuple[str, str]]:
    accounts = survey.accounts
    if accounts is None:
        yield "account", f"{survey.no_accounts}; set it if your site bills jobs"
        yield "qos", "set it if your site requires one"
        return
    if not accounts.names:
        yield "account", "the accounting database lists none for you; ask the site"
    elif len(accounts.names) > 1 and accounts.default not in accounts.names:
        yield "account", f"you have no default; set one of {', '.join(accounts.names)}"
    if len(accounts.qos) > 1:
        yield "qos", f"default of the account; allowed: {', '.join(accounts.qos)}"
