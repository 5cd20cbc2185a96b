"""A profile for a cluster that was asked about itself: what was chosen and why, and what could not be learnt.

Pure: nothing here talks to Slurm or writes a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hsadml_dist.config.yaml_loader import to_inline_yaml
from hsadml_dist.errors import ConfigError, Fault, did_you_mean
from hsadml_dist.slurm.job_records import RequeueMode
from hsadml_dist.slurm.profiles import Profile
from hsadml_dist.slurm.sbatch import parse_time_limit
from hsadml_dist.slurm.site import Accounts, NodeType, Partition, SiteSurvey, gpu_node_types, requeue_problem

SOON_SECONDS = 15
"""A requeued job that waits no longer than this needs no successor beside it."""
A_DAY = 24 * 3600
LEAD = 120


@dataclass(frozen=True, kw_only=True)
class ProfileChoice:
    """A setting that was chosen, and the reason."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProfileDraft:
    """A profile to be.

    Attributes:
        title: For which cluster.
        chosen: The settings.
        unknown: (key, what to do) of what the cluster does not tell.
    """

    title: str
    chosen: tuple[ProfileChoice, ...]
    unknown: tuple[tuple[str, str], ...]

    @property
    def profile(self) -> Profile:
        """The profile itself."""
        return Profile(**{choice.key: choice.value for choice in self.chosen})

    def text(self) -> str:
        """Return the file: each setting with its reason, then what is not known as comments."""
        lines = [f"# {self.title}", "# Every key: docs/profiles.md. Check it with `hsadml doctor`.", ""]
        lines += [f"{choice.key}: {to_inline_yaml(choice.value)} # {choice.reason}" for choice in self.chosen]
        lines += ["", "# What the cluster does not tell:"]
        lines += [f"# {key}: {text}" for key, text in self.unknown]
        return "\n".join(lines) + "\n"


def draft_profile(survey: SiteSurvey, partition: str | None = None) -> ProfileDraft:
    """Return a profile for the cluster.

    Args:
        survey: What it said of itself.
        partition: Where jobs shall go; None: the site's default, or one with GPUs where only others have them.

    Raises:
        ConfigError: There is no such partition, or none at all.
    """
    place, reason = _partition(survey, partition)
    kinds = survey.nodes[place.name]
    requeue = tuple(_requeue_choices(survey, place))
    chosen = (
        ProfileChoice(key="partition", value=place.name, reason=reason),
        *_account_choices(survey.accounts),
        *_node_choices(kinds),
        *_time_choices(place, survey.default_times.get(place.name)),
        *requeue,
        ProfileChoice(
            key="signal_lead", value=LEAD, reason="seconds to save before the end; `hsadml doctor` measures a save"
        ),
    )
    site = survey.site
    title = f"Cluster {site.cluster or 'without a name'}, Slurm {site.version}: written by `hsadml profile init`."
    return ProfileDraft(title=title, chosen=chosen, unknown=tuple(_unknown(survey, requeue[-1].value, place, kinds)))


def _partition(survey: SiteSurvey, wanted: str | None) -> tuple[Partition, str]:
    """Return the partition and why it is that one."""
    places = survey.partitions
    names = [place.name for place in places]
    if not places:
        raise ConfigError([Fault(where="cluster", key="partition", problem="none is up that you may use")])
    if wanted is not None:
        if wanted not in names:
            problem = f"no partition {wanted!r} that is up; there are: {', '.join(names)}{did_you_mean(wanted, names)}"
            raise ConfigError([Fault(where="command line", key="--partition", problem=problem)])
        return places[names.index(wanted)], "as you said"
    default = next((place for place in places if place.is_default), places[0])
    why = "the site's default" if default.is_default else "the first; the site names no default"
    with_gpus = [place for place in places if gpu_node_types(survey.nodes[place.name])]
    if with_gpus and default not in with_gpus:
        default, why = max(with_gpus, key=lambda place: place.nodes), f"has GPUs; the default, {default.name}, has none"
    rest = ", ".join(name for name in names if name != default.name)
    return default, why + (f"; others: {rest}" if rest else "")


def _account_choices(accounts: Accounts | None) -> Iterator[ProfileChoice]:
    if accounts is None or not accounts.names:
        return
    others = ", ".join(name for name in accounts.names if name != accounts.default)
    if accounts.default in accounts.names:
        yield ProfileChoice(
            key="account", value=accounts.default, reason="your default" + (f"; others: {others}" * bool(others))
        )
    elif len(accounts.names) == 1:
        yield ProfileChoice(key="account", value=accounts.names[0], reason="the only one that you may charge")


def _node_choices(kinds: tuple[NodeType, ...]) -> Iterator[ProfileChoice]:
    """Yield GPUs and CPUs by the weakest node with GPUs, so that every one of them will do."""
    able = gpu_node_types(kinds)
    if not able:
        return
    gpus = min(kind.gpus for kind in able)
    types = sorted({kind.gpu_type for kind in able if kind.gpu_type})
    numbers = sorted({kind.gpus for kind in able})
    reason = "all GPUs of a node" if len(numbers) == 1 else f"nodes have {' or '.join(map(str, numbers))}"
    if len(types) > 1:
        reason += f"; to choose one of {', '.join(types)}: gpu:TYPE:{gpus}"
    yield ProfileChoice(key="gres", value=f"gpu:{gpus}", reason=reason)
    cpus = min(kind.cpus // kind.gpus for kind in able)
    if cpus:
        yield ProfileChoice(key="cpus_per_task", value=cpus, reason="the CPUs of a node by its GPUs, one rank each")


def _time_choices(place: Partition, default_time: str | None) -> Iterator[ProfileChoice]:
    if place.max_seconds is None:
        if default_time is not None:
            reason = f"jobs that say nothing get {default_time}; a run goes on over many jobs"
            yield ProfileChoice(key="time", value="1-00:00:00", reason=reason)
        return
    seconds = min(place.max_seconds, A_DAY)
    reason = "the partition's limit" if seconds == place.max_seconds else "the limit is longer; short jobs start sooner"
    yield ProfileChoice(key="time", value=format_time_limit(seconds), reason=f"{reason}; a run goes on over many jobs")


def format_time_limit(seconds: int) -> str:
    """Return seconds as Slurm writes a time limit; ``parse_time_limit`` reads it back."""
    days, rest = divmod(seconds, A_DAY)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    text = f"{days}-{clock}" if days else clock
    assert parse_time_limit(text) == seconds
    return text


def _requeue_choices(survey: SiteSurvey, place: Partition) -> Iterator[ProfileChoice]:
    closed = survey.alloc_nodes.get(place.name)
    if closed is not None:
        reason = f"{place.name} takes jobs from {closed} only (AllocNodes)"
        yield ProfileChoice(key="sbatch_on_nodes", value=False, reason=reason)
    mode, reason = choose_requeue_mode(survey, place)
    yield ProfileChoice(key="requeue", value=mode, reason=reason)


def choose_requeue_mode(survey: SiteSurvey, place: Partition) -> tuple[RequeueMode, str]:
    """Return how stopped jobs should come back in a partition, and why."""
    site = survey.site
    against = _against_chain(survey, place)
    if against is None:
        return _chain_or_self(survey, place)
    if requeue_problem(site, "self", place.name) is None:
        return "self", against
    return "none", f"neither can work: {against}"


def _against_chain(survey: SiteSurvey, place: Partition) -> str | None:
    if requeue_problem(survey.site, "chain", place.name) is not None:
        return "the site puts finished jobs back into the queue (RequeueExit)"
    if place.name in survey.alloc_nodes:
        return "a chain submits from the nodes, which this partition does not take"
    limit = None if survey.accounts is None else survey.accounts.max_submit
    if limit is not None and limit < 2:
        return f"a chain keeps a second job queued, and you may have {limit} at a time (MaxSubmitJobs)"
    return None


def _chain_or_self(survey: SiteSurvey, place: Partition) -> tuple[RequeueMode, str]:
    wait = survey.site.credential_seconds + 1
    if requeue_problem(survey.site, "self", place.name) is not None:
        return "chain", f"{place.name} ends preempted jobs for good (PreemptMode={place.preempt_mode})"
    if wait <= SOON_SECONDS:
        return "self", f"a requeued job is back after {wait} s (cred_expire); no second job need wait"
    return "chain", f"a requeued job waits {wait} s (cred_expire) before it may start; a successor starts at once"


def _unknown(
    survey: SiteSurvey, requeue: RequeueMode, place: Partition, kinds: tuple[NodeType, ...]
) -> Iterator[tuple[str, str]]:
    yield from _unknown_account(survey)
    if requeue == "chain":
        why = f"a plug-in judges each job here ({survey.submit_plugins})" if survey.submit_plugins else "unknown"
        yield "sbatch_on_nodes", f"{why}; `hsadml doctor --nodes 1` finds out; if false, `requeue: self`"
    if not gpu_node_types(kinds):
        yield "gres", f"no GPUs in {place.name}; cpus_per_task is 1 unless you say"
    yield "modules", "whether the nodes need any; `module avail` lists them"
    yield "scratch", "a folder on each node's own disk, such as /tmp/$USER/$SLURM_JOB_ID"
    yield "env", "which network joins the nodes; NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name it where there are many"


def _unknown_account(survey: SiteSurvey) -> Iterator[tuple[str, str]]:
    accounts = survey.accounts
    if accounts is None:
        yield "account", f"{survey.no_accounts}; set it if your site bills jobs"
        yield "qos", "set it if your site asks for one"
        return
    if not accounts.names:
        yield "account", "the accounting database knows none of yours; ask the site"
    elif len(accounts.names) > 1 and accounts.default not in accounts.names:
        yield "account", f"you have no default; set one of {', '.join(accounts.names)}"
    if len(accounts.qos) > 1:
        yield "qos", f"the account's default is taken; you may set one of {', '.join(accounts.qos)}"
