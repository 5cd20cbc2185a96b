"""The configuration files of a private cluster.

All texts are pure functions of a :class:`ClusterLayout`; only ``write_files`` touches the disk. Options are those of
Slurm 22.05 (``man slurm.conf``); the reasons in comments were measured.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hsadml_dist.errors import UsageError, did_you_mean

CPUS_PER_NODE = 8
MEMORY_MIB = 16384


class NodeMode(enum.StrEnum):
    """How the nodes are kept apart."""

    LOCAL = "local"
    """Several slurmd on 127.0.0.1, each on its own port."""
    NETNS = "netns"
    """Each slurmd in its own namespaces: a host with its own name and address."""


@dataclass(frozen=True, kw_only=True)
class SimulatedSite:
    """The settings of a computing centre that decide how a job is stopped and requeued; Slurm's defaults if not set.

    Attributes:
        name: Value of the option ``--site``.
        credential_seconds: Lifetime of a credential; a requeued job waits one second longer.
        kill_wait_seconds: Time between SIGTERM and SIGKILL once Slurm ends a job.
        grace_seconds: Time between the signal of a preemption and the end of the job; 0 gives no signal in advance.
        user_signal: True if a preempted job gets the signal of its ``--signal`` option.
        max_submitted: Number of jobs that a user may have queued or running; 0 means no limit.
        sbatch_on_nodes: True if jobs may be submitted from inside a job.
        requeue_exit: Exit codes after which a job is requeued; Slurm's ``RequeueExit``.
    """

    name: str
    credential_seconds: int = 120
    kill_wait_seconds: int = 30
    grace_seconds: int = 0
    user_signal: bool = False
    max_submitted: int = 0
    sbatch_on_nodes: bool = True
    requeue_exit: tuple[int, ...] = ()


FRIENDLY = SimulatedSite(name="friendly", credential_seconds=5, kill_wait_seconds=5, grace_seconds=5, user_signal=True)
DEFAULT = SimulatedSite(name="default")
STRICT = SimulatedSite(name="strict", max_submitted=2, sbatch_on_nodes=False)
REQUEUEING = SimulatedSite(name="requeueing", credential_seconds=5, requeue_exit=(1, 70, 85))
SITES: Mapping[str, SimulatedSite] = {site.name: site for site in (FRIENDLY, DEFAULT, STRICT, REQUEUEING)}


@dataclass(frozen=True, kw_only=True)
class ClusterNode:
    """The name of a compute node and the address of its slurmd."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, kw_only=True)
class ClusterLayout:
    """Everything that the configuration files depend on.

    Attributes:
        root: Folder of the cluster under a path short enough for Unix sockets (at most 107 bytes).
        user: Login name of the daemons.
        controller_host: Short host name of this machine; slurmctld refuses to run under another one.
        controller_address: Address of the controller as seen by the nodes.
        gpus: Device files that act as the GPUs of each node; may be empty.
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
        """Path of the socket of the cluster's own munged."""
        return f"{self.root}/munge/sock"


def get_simulated_site(name: str) -> SimulatedSite:
    """Return a site by its name.

    Raises:
        UsageError: There is no such site.
    """
    if name not in SITES:
        raise UsageError(f"site: no site {name!r}; allowed: {', '.join(SITES)}{did_you_mean(name, SITES)}")
    return SITES[name]


def get_node_mode(name: str) -> NodeMode:
    """Return a mode by its name.

    Raises:
        UsageError: There is no such mode.
    """
    try:
        return NodeMode(name)
    except ValueError:
        known = [str(mode) for mode in NodeMode]
        raise UsageError(f"mode: no mode {name!r}; allowed: {', '.join(known)}{did_you_mean(name, known)}") from None


def write_files(layout: ClusterLayout) -> None:
    """Create the folders, configuration files and munge key of a cluster."""
    root = Path(layout.root)
    for name in ("munge", "state", "spool", "pid", "log", *(f"spool/{node.name}" for node in layout.nodes)):
        (root / name).mkdir(exist_ok=True, mode=0o755)
    texts = {
        "slurm.conf": slurm_conf(layout),
        "gres.conf": gres_conf(layout),
        "cgroup.conf": "",
        "plugstack.conf": "",
        "job_submit.lua": job_submit_lua(layout.site),
        "hosts": hosts_file(layout),
        "nsswitch.conf": NSSWITCH,
        "resolv.conf": "",
        "absent": "",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    key = root / "munge" / "key"
    key.unlink(missing_ok=True)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(os.urandom(128))


def slurm_conf(layout: ClusterLayout) -> str:
    """Return the text of ``slurm.conf``."""
    site, names = layout.site, ",".join(node.name for node in layout.nodes)
    partitions = [
        f"PartitionName=low Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE"
        f" GraceTime={site.grace_seconds}",
        f"PartitionName=high Nodes={names} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF",
    ]
    lines = [*_optional_settings(layout), *_node_lines(layout), *partitions]
    return _SLURM_CONF.format(layout=layout, site=site) + "".join(f"{line}\n" for line in lines)


def gres_conf(layout: ClusterLayout) -> str:
    """Return the text of ``gres.conf``: the same device files on every node."""
    return "".join(f"Name=gpu File={device}\n" for device in layout.gpus)


def job_submit_lua(site: SimulatedSite) -> str:
    """Return the text of ``job_submit.lua``, which enforces what a strict site enforces by accounting and images.

    Without an accounting database Slurm has no MaxSubmitJobs, so the plug-in counts the user's jobs itself. Slurm
    passes it a new list only when the second of the last change is a later one: of two submissions within a second the
    next one may see only the first. A submission from inside a job is recognised by the variables that Slurm sets.
    """
    return _LUA.replace("@MAX@", str(site.max_submitted)).replace("@NODES@", str(site.sbatch_on_nodes).lower())


def hosts_file(layout: ClusterLayout) -> str:
    """Return ``/etc/hosts`` for the nodes of a netns cluster: every name that a job may look up, without DNS."""
    entries = [("127.0.0.1", "localhost"), (layout.controller_address, layout.controller_host)]
    entries += [(node.address, node.name) for node in layout.nodes]
    return "".join(f"{address} {name}\n" for address, name in entries)


def _optional_settings(layout: ClusterLayout) -> list[str]:
    site = layout.site
    settings = {
        "GresTypes=gpu": layout.gpus,
        "SlurmctldParameters=preempt_send_user_signal": site.user_signal,
        f"RequeueExit={','.join(map(str, site.requeue_exit))}": site.requeue_exit,
        "JobSubmitPlugins=lua": site.max_submitted or not site.sbatch_on_nodes,
    }
    return [setting for setting, applies in settings.items() if applies]


def _node_lines(layout: ClusterLayout) -> list[str]:
    hosts = {node.name: "localhost" if layout.mode is NodeMode.LOCAL else node.name for node in layout.nodes}
    gpus = f" Gres=gpu:{len(layout.gpus)}" if layout.gpus else ""
    return [
        f"NodeName={node.name} NodeHostname={hosts[node.name]} NodeAddr={node.address} Port={node.port}"
        f" CPUs={CPUS_PER_NODE} RealMemory={MEMORY_MIB}{gpus} State=UNKNOWN"
        for node in layout.nodes
    ]


NSSWITCH = "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\nservices: files\n"
"""``/etc/nsswitch.conf`` for the nodes: look-ups that wait for DNS cost a job 18 s at its first collective."""

_SLURM_CONF = """\
# A private cluster, written by `hsadml cluster up`. Delete it with `hsadml cluster down`.
ClusterName=box
SlurmctldHost={layout.controller_host}({layout.controller_address})
SlurmctldPort={layout.controller_port}
SlurmUser={layout.user}
SlurmdUser={layout.user}
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket},cred_expire={site.credential_seconds}
CredType=cred/munge
StateSaveLocation={layout.root}/state
SlurmdSpoolDir={layout.root}/spool/%n
SlurmctldPidFile={layout.root}/pid/slurmctld.pid
SlurmdPidFile={layout.root}/pid/%n.pid
SlurmctldLogFile={layout.root}/log/slurmctld.log
SlurmdLogFile={layout.root}/log/%n.log
PlugStackConfig={layout.root}/plugstack.conf
JobCompType=jobcomp/filetxt
JobCompLoc={layout.root}/log/jobcomp.log
MailProg=/bin/true
# Neither cgroups nor an accounting database is available without help from the system.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# The nodes have the CPUs that this file lists, whatever the machine has.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_continue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=10
# 5 s detects a lost node sooner, but also reports a busy two-core machine as lost.
SlurmdTimeout=10
KillWait={site.kill_wait_seconds}
MessageTimeout=10
BatchStartTimeout=10
TCPTimeout=2
InactiveLimit=0
MinJobAge=600
UnkillableStepTimeout=20
"""

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
