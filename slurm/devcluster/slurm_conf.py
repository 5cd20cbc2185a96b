"""The configuration of a private cluster, as text: nothing here touches a file or a process.

Options are those of Slurm 22.05 (``man slurm.conf``); the reasons beside them were measured.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from hsadml_dist.errors import UsageError, did_you_mean

CPUS_PER_NODE = 8
MEMORY_MIB = 16384


class NodeMode(enum.StrEnum):
    """How the nodes are told apart."""

    LOCAL = "local"
    """Several slurmd on 127.0.0.1, each on a port of its own."""
    NETNS = "netns"
    """Each slurmd in namespaces of its own: a host with its own name and address."""


@dataclass(frozen=True, kw_only=True)
class SimulatedSite:
    """The habits of a computing centre that decide how a job is stopped and comes back.

    Attributes:
        name: What ``--site`` calls it.
        credential_seconds: Life of a credential; a requeued job waits one second longer than this.
        kill_wait_seconds: From SIGTERM to SIGKILL once Slurm ends a job.
        grace_seconds: From the notice of a preemption to its end; 0 gives no notice.
        user_signal: Whether a preempted job gets the signal it asked for by ``--signal``.
        max_submitted: How many jobs a user may have queued or running; 0 sets no limit.
        sbatch_on_nodes: Whether jobs may be submitted from inside a job.
        requeue_exit: Exit codes after which a job that may be requeued is; Slurm's ``RequeueExit``.
    """

    name: str
    credential_seconds: int
    kill_wait_seconds: int
    grace_seconds: int
    user_signal: bool
    max_submitted: int = 0
    sbatch_on_nodes: bool = True
    requeue_exit: tuple[int, ...] = ()


FRIENDLY = SimulatedSite(name="friendly", credential_seconds=5, kill_wait_seconds=5, grace_seconds=5, user_signal=True)
DEFAULT = SimulatedSite(
    name="default", credential_seconds=120, kill_wait_seconds=30, grace_seconds=0, user_signal=False
)
STRICT = SimulatedSite(
    name="strict",
    credential_seconds=120,
    kill_wait_seconds=30,
    grace_seconds=0,
    user_signal=False,
    max_submitted=2,
    sbatch_on_nodes=False,
)
REQUEUEING = SimulatedSite(
    name="requeueing",
    credential_seconds=5,
    kill_wait_seconds=30,
    grace_seconds=0,
    user_signal=False,
    requeue_exit=(1, 70, 85),
)
SITES: Mapping[str, SimulatedSite] = {site.name: site for site in (FRIENDLY, DEFAULT, STRICT, REQUEUEING)}


@dataclass(frozen=True, kw_only=True)
class ClusterNode:
    """One compute node: its name, and where its slurmd listens."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, kw_only=True)
class ClusterLayout:
    """All that the configuration files depend on.

    Attributes:
        root: Folder of the cluster under a path short enough for Unix sockets (at most 107 bytes).
        user: Login name that the daemons run as.
        controller_host: Short host name of this machine: slurmctld refuses to run under another.
        controller_address: Address of the controller as the nodes see it.
        controller_port: Port of the controller.
        nodes: The compute nodes.
        mode: How the nodes are told apart.
        site: The computing centre that is played.
        gpus: Device files that stand for the GPUs of each node; may be empty.
    """

    root: PurePosixPath
    user: str
    controller_host: str
    controller_address: str
    controller_port: int
    nodes: tuple[ClusterNode, ...]
    mode: NodeMode
    site: SimulatedSite
    gpus: tuple[str, ...] = ()

    @property
    def munge_socket(self) -> str:
        """Path of the cluster's own munged."""
        return f"{self.root}/munge/sock"

    def pid_file(self, daemon: str) -> str:
        """Path of a daemon's pid file."""
        return f"{self.root}/pid/{daemon}.pid"

    def log_file(self, daemon: str) -> str:
        """Path of a daemon's log."""
        return f"{self.root}/log/{daemon}.log"


def get_simulated_site(name: str) -> SimulatedSite:
    """Return the site called ``name``.

    Raises:
        UsageError: There is no such site.
    """
    if name not in SITES:
        raise UsageError(f"site {name!r} is unknown; allowed: {', '.join(SITES)}{did_you_mean(name, SITES)}")
    return SITES[name]


def get_node_mode(name: str) -> NodeMode:
    """Return the mode called ``name``.

    Raises:
        UsageError: There is no such mode.
    """
    try:
        return NodeMode(name)
    except ValueError:
        allowed = [str(mode) for mode in NodeMode]
        raise UsageError(
            f"mode {name!r} is unknown; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}"
        ) from None


def slurm_conf(layout: ClusterLayout) -> str:
    """Return the text of ``slurm.conf``."""
    lines = [
        *_identity(layout),
        *_paths(layout),
        *_plugins(layout),
        *_timing(layout.site),
        *_nodes(layout),
        *_partitions(layout),
    ]
    return "\n".join(lines) + "\n"


def gres_conf(layout: ClusterLayout) -> str:
    """Return the text of ``gres.conf``: the same device files on every node."""
    return "".join(f"Name=gpu File={device}\n" for device in layout.gpus)


def _identity(layout: ClusterLayout) -> list[str]:
    return [
        "# A private cluster, written by `hsadml cluster up`. Delete it with `hsadml cluster down`.",
        "ClusterName=box",
        f"SlurmctldHost={layout.controller_host}({layout.controller_address})",
        f"SlurmctldPort={layout.controller_port}",
        f"SlurmUser={layout.user}",
        f"SlurmdUser={layout.user}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={layout.munge_socket},cred_expire={layout.site.credential_seconds}",
        "CredType=cred/munge",
    ]


def _paths(layout: ClusterLayout) -> list[str]:
    return [
        f"StateSaveLocation={layout.root}/state",
        f"SlurmdSpoolDir={layout.root}/spool/%n",
        f"SlurmctldPidFile={layout.pid_file('slurmctld')}",
        f"SlurmdPidFile={layout.pid_file('%n')}",
        f"SlurmctldLogFile={layout.log_file('slurmctld')}",
        f"SlurmdLogFile={layout.log_file('%n')}",
        f"PlugStackConfig={layout.root}/plugstack.conf",
        "JobCompType=jobcomp/filetxt",
        f"JobCompLoc={layout.root}/log/jobcomp.log",
        "MailProg=/bin/true",
    ]


def _plugins(layout: ClusterLayout) -> list[str]:
    lines = [
        # Neither cgroups nor an accounting database is to be had without a system's help.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        # The nodes have the CPUs that this file says, whatever the machine has.
        "SlurmdParameters=config_overrides",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_continue",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "JobRequeue=1",
        "ReturnToService=2",
    ]
    if layout.gpus:
        lines.append("GresTypes=gpu")
    if layout.site.user_signal:
        lines.append("SlurmctldParameters=preempt_send_user_signal")
    if layout.site.requeue_exit:
        lines.append(f"RequeueExit={','.join(map(str, layout.site.requeue_exit))}")
    if layout.site.max_submitted or not layout.site.sbatch_on_nodes:
        lines.append("JobSubmitPlugins=lua")
    return lines


def _timing(site: SimulatedSite) -> list[str]:
    return [
        "SlurmctldTimeout=10",
        # 5 s finds a lost node sooner, but takes a busy two-core machine for one.
        "SlurmdTimeout=10",
        f"KillWait={site.kill_wait_seconds}",
        "MessageTimeout=10",
        "BatchStartTimeout=10",
        "TCPTimeout=2",
        "InactiveLimit=0",
        "MinJobAge=600",
        "UnkillableStepTimeout=20",
    ]


def _nodes(layout: ClusterLayout) -> list[str]:
    hosts = {node.name: "localhost" if layout.mode is NodeMode.LOCAL else node.name for node in layout.nodes}
    gpus = f" Gres=gpu:{len(layout.gpus)}" if layout.gpus else ""
    return [
        f"NodeName={node.name} NodeHostname={hosts[node.name]} NodeAddr={node.address} Port={node.port}"
        f" CPUs={CPUS_PER_NODE} RealMemory={MEMORY_MIB}{gpus} State=UNKNOWN"
        for node in layout.nodes
    ]


def _partitions(layout: ClusterLayout) -> list[str]:
    names = ",".join(node.name for node in layout.nodes)
    grace = layout.site.grace_seconds
    return [
        f"PartitionName=low Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=1"
        f" PreemptMode=REQUEUE GraceTime={grace}",
        f"PartitionName=high Nodes={names} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF",
    ]


def job_submit_lua(site: SimulatedSite) -> str:
    """Return the text of ``job_submit.lua``: what a strict site enforces by accounting and by its images.

    Without an accounting database Slurm knows no MaxSubmitJobs, so the plug-in counts the user's jobs itself. Slurm
    gives it a new list only when the second of the last change is a later one: of two submissions within a second the
    next one may see the first alone. A submission from inside a job is told by the variables that Slurm sets there.
    """
    return _LUA.replace("@MAX@", str(site.max_submitted)).replace("@NODES@", str(site.sbatch_on_nodes).lower())


_LUA = """\
local MAX_SUBMITTED = @MAX@
local FROM_NODES = @NODES@

local function unfinished(uid)
    local count = 0
    for _, job in pairs(slurm.jobs) do
        local state = job.job_state % 256
        if job.user_id == uid and state <= 2 then count = count + 1 end
    end
    return count
end

function slurm_job_submit(request, partitions, uid)
    local environment = request.environment
    if not FROM_NODES and request.script ~= nil and environment ~= nil and environment["SLURM_JOB_ID"] ~= nil then
        slurm.log_user("jobs may not be submitted from compute nodes here")
        return slurm.ERROR
    end
    if MAX_SUBMITTED > 0 and unfinished(uid) >= MAX_SUBMITTED then
        return slurm.ESLURM_ACCOUNTING_POLICY -- what MaxSubmitJobs answers
    end
    return slurm.SUCCESS
end

function slurm_job_modify(request, job, partitions, uid)
    return slurm.SUCCESS
end

return slurm.SUCCESS
"""


def hosts_file(layout: ClusterLayout) -> str:
    """Return ``/etc/hosts`` for the nodes of a netns cluster: every name that a job can meet, and no DNS."""
    entries = [("127.0.0.1", "localhost"), (layout.controller_address, layout.controller_host)]
    entries += [(node.address, node.name) for node in layout.nodes]
    return "".join(f"{address} {name}\n" for address, name in entries)


NSSWITCH = "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\nservices: files\n"
"""``/etc/nsswitch.conf`` for the nodes: look-ups that wait for DNS cost a job 18 s at its first collective."""
