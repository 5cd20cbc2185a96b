"""A private Slurm cluster: start it in a folder, run commands on it, stop it without a trace."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hsadml_dist.atomic import write_text
from hsadml_dist.errors import ClusterError, UsageError
from hsadml_dist.slurm.devcluster import daemons, netns, slurm_conf
from hsadml_dist.slurm.devcluster.daemons import Daemon
from hsadml_dist.slurm.devcluster.slurm_conf import ClusterLayout, ClusterNode, NodeMode, SimulatedSite

RECORD = "cluster.json"
MAX_NODES = 64
READY_SECONDS = 30.0
_SLURM_PREFIXES = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCONTROL_")


@dataclass(frozen=True, kw_only=True)
class ClusterStatus:
    """The state of a cluster at one moment.

    Attributes:
        daemons: True for each daemon that runs, by name.
        nodes: Slurm's state of each node, by name; empty if the controller does not answer.
    """

    daemons: Mapping[str, bool]
    nodes: Mapping[str, str]

    @property
    def ready(self) -> bool:
        """Whether every daemon runs and no node is down."""
        lost = any(state.startswith(("down", "unk", "drain", "fail", "no")) for state in self.nodes.values())
        return bool(self.nodes) and all(self.daemons.values()) and not lost


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running private cluster; as a context manager it is stopped at the end.

    Attributes:
        folder: Folder of all its files; ``folder/slurm.conf`` selects the cluster.
        root: The same folder under a path short enough for Unix sockets.
        site: Name of the simulated computing centre.
        daemons: All started processes, in order.
        bridge: Network bridge; None in mode local.
    """

    folder: Path
    root: Path
    mode: NodeMode
    site: str
    nodes: tuple[ClusterNode, ...]
    daemons: tuple[Daemon, ...] = ()
    bridge: netns.Bridge | None = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.down()

    @property
    def conf_file(self) -> Path:
        """Path of slurm.conf."""
        return self.folder / "slurm.conf"

    def env(self) -> dict[str, str]:
        """Return the environment of this process with SLURM_CONF set, and without variables of other clusters."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(_SLURM_PREFIXES)}
        return own | {"SLURM_CONF": str(self.conf_file)}

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        check: bool = True,
        cwd: Path | None = None,
        extra_env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with the environment of the cluster and return its output as text.

        Raises:
            ClusterError: ``check`` is set and the command failed.
            subprocess.TimeoutExpired: It took longer than ``timeout`` seconds.
        """
        env = self.env() | dict(extra_env or {})
        done = subprocess.run(argv, env=env, cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise ClusterError(f"`{' '.join(argv)}` failed: {reason}")
        return done

    def status(self) -> ClusterStatus:
        """Return which daemons run and the states of the nodes."""
        alive = {daemon.name: daemon.alive for daemon in self.daemons}
        return ClusterStatus(daemons=alive, nodes=self.node_states() if alive.get("slurmctld") else {})

    def node_states(self) -> dict[str, str]:
        """Return Slurm's state of each node, by name; empty if the controller does not answer."""
        answer = self.run(["sinfo", "-h", "-N", "-o", "%N %T"], check=False)
        return dict(line.split(maxsplit=1) for line in answer.stdout.splitlines())

    def daemon(self, name: str) -> Daemon:
        """Return the daemon ``name``: munged, slurmctld or the name of a node.

        Raises:
            ClusterError: There is none.
        """
        newest = {daemon.name: daemon for daemon in self.daemons}
        if name not in newest:
            raise ClusterError(
                f"the cluster in {self.folder} has no daemon {name!r}; allowed: {', '.join(sorted(newest))}"
            )
        return newest[name]

    def cut_power(self, node: str) -> None:
        """Kill a node and all its processes at once, like a power loss (mode netns only).

        Raises:
            ClusterError: The mode is local: its nodes share the machine.
        """
        self._bridge()
        daemons.kill([self.daemon(node)])

    def cut_cable(self, node: str) -> None:
        """Disconnect a node from the network; its processes keep running (mode netns only)."""
        netns.set_cable(self._bridge(), self._index(node), "down")

    def mend_cable(self, node: str) -> None:
        """Reconnect a node after ``cut_cable``."""
        netns.set_cable(self._bridge(), self._index(node), "up")

    def restart_controller(self, away: float = 0.0) -> Cluster:
        """Kill slurmctld, start it again after ``away`` seconds and return the new cluster; jobs keep running."""
        daemons.kill([self.daemon("slurmctld")])
        time.sleep(away)
        return _with(self, _start_controller(self))

    def down(self) -> None:
        """Cancel all jobs, end all processes, remove all network devices; a second call does nothing."""
        if any(daemon.name == "slurmctld" and daemon.alive for daemon in self.daemons):
            self._cancel_jobs()
        # The controller first, because it must not requeue the jobs that the next lines kill.
        daemons.stop(d for d in self.daemons if d.name == "slurmctld")
        if self.mode is NodeMode.LOCAL:
            daemons.kill(daemons.job_processes(self.root.resolve(), self.conf_file))
        # A slurmd has nothing to save, but spends seconds on steps that are gone.
        daemons.kill(d for d in self.daemons if d.name in {node.name for node in self.nodes})
        daemons.stop(self.daemons)
        if self.bridge is not None:
            netns.remove_bridge(self.bridge, len(self.nodes))
        if self.root != self.folder:
            with contextlib.suppress(FileNotFoundError):
                self.root.unlink()
                self.root.parent.rmdir()
        (self.folder / RECORD).unlink(missing_ok=True)

    def _cancel_jobs(self) -> None:
        # The next `up` in this folder does not restore a cancelled job, and continues the job numbers.
        with contextlib.suppress(subprocess.TimeoutExpired):
            states = "--state=PENDING,RUNNING,SUSPENDED"
            jobs = self.run(["squeue", "-h", "-o", "%A", states], check=False, timeout=5).stdout.split()
            if jobs:
                self.run(["scancel", "--full", "--signal=KILL", *jobs], check=False, timeout=5)
                self.run(["scancel", *jobs], check=False, timeout=5)

    def _bridge(self) -> netns.Bridge:
        if self.bridge is None:
            raise ClusterError("power and cable: the nodes of mode local share the machine; use mode netns")
        return self.bridge

    def _index(self, node: str) -> int:
        return 1 + [known.name for known in self.nodes].index(node)


def up(folder: Path, *, nodes: int = 2, mode: str = "local", site: str = "friendly") -> Cluster:
    """Start a private cluster and return it once all nodes are idle.

    Args:
        folder: Folder of all its files; created if it is missing.
        nodes: Number of compute nodes, ``n1`` to ``nN``.
        mode: ``local`` or ``netns``, see :class:`NodeMode`.
        site: Name of a site in ``slurm_conf.SITES``.

    Raises:
        UsageError: An argument is invalid.
        ClusterError: Slurm is not installed, a cluster runs in this folder already, or a daemon failed; no process
            is left running.
    """
    known_mode, known_site = slurm_conf.get_node_mode(mode), slurm_conf.get_simulated_site(site)
    if not 1 <= nodes <= MAX_NODES:
        raise UsageError(f"nodes is {nodes}; allowed: 1 to {MAX_NODES}")
    for tool in ("munged", "slurmctld", "slurmd", "srun"):
        daemons.find_tool(tool)
    folder = folder.resolve()
    _refuse_second_cluster(folder)
    cluster = _claim(folder, nodes, known_mode, site)
    try:
        layout = _layout(cluster, known_site)
        slurm_conf.write_files(layout)
        cluster = _start(cluster, layout)
        _await_ready(cluster)
    except BaseException:
        load(folder).down()
        raise
    return cluster


def load(folder: Path) -> Cluster:
    """Return the cluster that runs in ``folder``.

    Raises:
        ClusterError: There is none.
    """
    record = folder.resolve() / RECORD
    try:
        raw: dict[str, Any] = json.loads(record.read_text())
    except FileNotFoundError:
        raise ClusterError(f"{folder}: no private cluster runs here; start one: hsadml cluster up {folder}") from None
    return Cluster(
        folder=Path(raw["folder"]),
        root=Path(raw["root"]),
        mode=NodeMode(raw["mode"]),
        site=raw["site"],
        nodes=tuple(ClusterNode(**node) for node in raw["nodes"]),
        daemons=tuple(Daemon(**daemon) for daemon in raw["daemons"]),
        bridge=netns.Bridge(**raw["bridge"]) if raw["bridge"] else None,
    )


def _save(cluster: Cluster) -> None:
    # Atomically, because `down` must find every process even if `up` is killed between two lines.
    write_text(cluster.folder / RECORD, json.dumps(dataclasses.asdict(cluster), default=str, indent=1), durable=False)


def _refuse_second_cluster(folder: Path) -> None:
    if not (folder / RECORD).exists():
        return
    earlier = load(folder)
    if any(daemon.alive for daemon in earlier.daemons):
        raise ClusterError(f"{folder}: a private cluster runs here; stop it first: hsadml cluster down {folder}")
    earlier.down()


def _claim(folder: Path, count: int, mode: NodeMode, site: str) -> Cluster:
    if mode is NodeMode.NETNS:
        netns.require_namespaces()
    folder.mkdir(parents=True, exist_ok=True)
    bridge = netns.create_bridge() if mode is NodeMode.NETNS else None
    # With a bridge one port for all nodes, because each has its own address.
    ports = daemons.free_ports(count) if bridge is None else [6818] * count
    hosts = ["127.0.0.1" if bridge is None else bridge.host(10 + index) for index in range(count)]
    nodes = tuple(
        ClusterNode(name=f"n{number}", address=host, port=port)
        for number, (host, port) in enumerate(zip(hosts, ports, strict=True), start=1)
    )
    root = daemons.short_path(folder)
    cluster = Cluster(folder=folder, root=root, mode=mode, site=site, nodes=nodes, bridge=bridge)
    _save(cluster)
    return cluster


def _layout(cluster: Cluster, site: SimulatedSite) -> ClusterLayout:
    return ClusterLayout(
        root=PurePosixPath(cluster.root),
        user=pwd.getpwuid(os.geteuid()).pw_name,
        controller_host=socket.gethostname().split(".")[0],
        controller_address="127.0.0.1" if cluster.bridge is None else cluster.bridge.address,
        controller_port=daemons.free_ports(1, taken=[node.port for node in cluster.nodes])[0],
        nodes=cluster.nodes,
        mode=cluster.mode,
        site=site,
        gpus=daemons.fake_gpus(cluster.root),
    )


def _start(cluster: Cluster, layout: ClusterLayout) -> Cluster:
    root, env = cluster.root, cluster.env()
    argv = [
        daemons.find_tool("munged"),
        # --force, because the folder may be writable by others than root.
        *("--foreground", "--force", f"--socket={layout.munge_socket}", f"--key-file={layout.root}/munge/key"),
        *(f"--pid-file={layout.root}/pid/munged.pid", f"--log-file={layout.root}/log/munged.log"),
        f"--seed-file={layout.root}/munge/seed",
    ]
    munged = daemons.spawn("munged", argv, output=root / "log/munged.out", env=env)
    cluster = _with(cluster, munged)
    daemons.wait_until(lambda: Path(layout.munge_socket).exists() or not munged.alive, seconds=10)
    if not munged.alive:
        raise ClusterError(f"munged did not start: {_last_line(root / 'log/munged.log', root / 'log/munged.out')}")
    cluster = _with(cluster, _start_controller(cluster))
    for index, node in enumerate(cluster.nodes, start=1):
        cluster = _with(cluster, *_start_node(cluster, node, index, layout.site))
    return cluster


def _start_controller(cluster: Cluster) -> Daemon:
    argv = [daemons.find_tool("slurmctld"), "-D", "-f", str(cluster.conf_file)]
    return daemons.spawn("slurmctld", argv, output=cluster.root / "log/slurmctld.out", env=cluster.env())


def _with(cluster: Cluster, *started: Daemon) -> Cluster:
    grown = dataclasses.replace(cluster, daemons=(*cluster.daemons, *started))
    _save(grown)
    return grown


def _start_node(cluster: Cluster, node: ClusterNode, index: int, site: SimulatedSite) -> tuple[Daemon, ...]:
    argv = [daemons.find_tool("slurmd"), "-D", "-f", str(cluster.conf_file), "-N", node.name]
    if cluster.bridge is None:
        return (daemons.spawn(node.name, argv, output=cluster.root / f"log/{node.name}.out", env=cluster.env()),)
    hide = [] if site.sbatch_on_nodes else [daemons.find_tool("sbatch")]
    return netns.start_node(node, index, cluster.bridge, argv, root=cluster.root, env=cluster.env(), hide=hide)


def _await_ready(cluster: Cluster) -> None:
    def is_settled() -> bool:
        if not all(daemon.alive for daemon in cluster.daemons):
            return True
        nodes = cluster.node_states()
        return len(nodes) == len(cluster.nodes) and set(nodes.values()) == {"idle"}

    in_time = daemons.wait_until(is_settled, seconds=READY_SECONDS, pause=0.05)
    for daemon in cluster.daemons:
        if not daemon.alive:
            logs = [cluster.root / "log" / f"{daemon.name}{end}" for end in (".log", ".out", ".boot.log")]
            raise ClusterError(f"{daemon.name} ended during the start of the cluster: {_last_line(*logs)}")
    if not in_time:
        raise ClusterError(f"the nodes were not idle after {READY_SECONDS:.0f} s; see {cluster.root}/log")


def _last_line(*logs: Path) -> str:
    for log in logs:
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        if lines:
            return lines[-1]
    return "no reason given"
