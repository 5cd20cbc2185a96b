"""Compute nodes as separate hosts: network namespaces on a bridge, each with its own name, address and cable.

The first process of a node holds its namespaces: SIGKILL of it simulates a power loss, ``set_cable`` a network fault.
Needs root and the programs ``ip`` (iproute2) and ``unshare`` (util-linux).
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm.devcluster import daemons
from hsadml_dist.slurm.devcluster.daemons import Daemon
from hsadml_dist.slurm.devcluster.slurm_conf import ClusterNode

# 198.18.0.0/15 is reserved for tests of network devices (RFC 2544): no site routes it.
SUBNETS = 512


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """The network bridge of one cluster: its private subnet, below ``SUBNETS``, determines the names of the devices."""

    number: int

    @property
    def name(self) -> str:
        """The name of the bridge device."""
        return f"hsb{self.number}"

    @property
    def address(self) -> str:
        """The address of this machine on the bridge."""
        return self.host(1)

    def host(self, last: int) -> str:
        """Return the address whose last number is ``last``."""
        return f"198.{18 + self.number // 256}.{self.number % 256}.{last}"

    def cable(self, index: int) -> str:
        """Return the name of the device at this machine's end of a node's cable (at most 15 letters)."""
        return f"hsv{self.number}n{index}"


def require_namespaces() -> None:
    """Check that this process may create namespaces.

    Raises:
        ClusterError: This is not root, or a program is missing.
    """
    if os.geteuid() != 0:
        raise ClusterError("mode netns needs root; mode local does not")
    for tool in ("ip", "unshare", "mount"):
        daemons.find_tool(tool)


def create_bridge() -> Bridge:
    """Create a bridge on the first free private subnet; creating the device claims the subnet.

    Raises:
        ClusterError: The kernel refuses bridges, or every subnet is taken.
    """
    problem = "no private subnet is free"
    for number in range(SUBNETS):
        bridge = Bridge(number=number)
        if Path("/sys/class/net", bridge.name).exists():
            continue
        made = _ip("link", "add", bridge.name, "type", "bridge", check=False)
        if made.returncode == 0:
            _ip("addr", "add", f"{bridge.address}/24", "dev", bridge.name)
            _ip("link", "set", bridge.name, "up")
            return bridge
        problem = made.stderr.strip()
        if "exists" not in problem:
            break
    raise ClusterError(f"cannot create a network bridge: {problem}")


def remove_bridge(bridge: Bridge, nodes: int) -> None:
    """Remove a bridge and every cable on it; missing devices are no error."""
    # A node that lost its power leaves its cable behind for a while, because the kernel frees namespaces late.
    for index in range(1, nodes + 1):
        _ip("link", "del", bridge.cable(index), check=False)
    _ip("link", "del", bridge.name, check=False)


def set_cable(bridge: Bridge, index: int, state: Literal["up", "down"]) -> None:
    """Connect the ``index``-th node (from 1) to the network, or disconnect it; its processes keep running."""
    _ip("link", "set", bridge.cable(index), state)


def start_node(
    node: ClusterNode,
    index: int,
    bridge: Bridge,
    argv: Sequence[str],
    *,
    root: Path,
    env: Mapping[str, str],
    hide: Sequence[str],
) -> tuple[Daemon, Daemon]:
    """Start a node: its namespaces, cable and slurmd.

    Args:
        node: The node.
        index: Its number, from 1.
        bridge: The bridge to connect it to.
        argv: Command line of its slurmd.
        root: Folder of the cluster, with ``hosts`` and ``nsswitch.conf``.
        env: Environment of the slurmd.
        hide: Paths of programs that the node must not have.

    Returns:
        The first process of the node, with which everything on the node ends, and its parent outside.

    Raises:
        ClusterError: The kernel refuses namespaces; the reason is in the node's boot log.
    """
    log = root / "log" / f"{node.name}.boot.log"
    script = _boot_script(node, root, argv, hide)
    unshare = [daemons.find_tool("unshare"), "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc"]
    outer = daemons.spawn(f"{node.name} (outer)", [*unshare, "/bin/sh", "-c", script], output=log, env=env)
    try:
        inner = _first_process(node.name, outer, log)
        _ip("link", "add", bridge.cable(index), "type", "veth", "peer", "name", "eth0", "netns", str(inner.pid))
        _ip("link", "set", bridge.cable(index), "master", bridge.name, "up")
    except BaseException:
        daemons.kill_tree(outer)
        raise
    return inner, outer


def _first_process(name: str, outer: Daemon, log: Path) -> Daemon:
    # unshare forks once the namespaces exist; its only child is the node's first process.
    daemons.wait_until(lambda: bool(daemons.children(outer.pid)) or not outer.alive, seconds=10)
    if found := daemons.running_processes(name, daemons.children(outer.pid)):
        return found[0]
    reason = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
    raise ClusterError(f"cannot create a node's namespaces: {''.join(reason) or 'no reason given'}")


def _boot_script(node: ClusterNode, root: Path, argv: Sequence[str], hide: Sequence[str]) -> str:
    # The shell remains the node's first process: it adopts and reaps the processes that jobs leave behind.
    binds = [("hosts", "/etc/hosts"), ("nsswitch.conf", "/etc/nsswitch.conf"), ("resolv.conf", "/etc/resolv.conf")]
    lines = [f"hostname {node.name}", "mount --make-rprivate /"]
    lines += [_bind(root / name, target) for name, target in binds]
    lines += [_bind(root / "absent", path) for path in hide]
    lines += [
        "ip link set lo up",
        "tries=0",
        "until ip link set eth0 up 2>/dev/null; do",
        "  tries=$((tries + 1)); [ $tries -lt 500 ] || exit 1; sleep 0.02",
        "done",
        f"ip addr add {node.address}/24 dev eth0",
        f"{shlex.join(argv)} &",
        "wait $!",
    ]
    return "\n".join(lines)


def _bind(source: Path, target: str) -> str:
    return f"[ ! -e {shlex.quote(target)} ] || mount --bind {shlex.quote(str(source))} {shlex.quote(target)}"


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([daemons.find_tool("ip"), *words], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise ClusterError(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}")
    return done
