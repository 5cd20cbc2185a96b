"""The place of a process in a job: a frozen value, and how to read it from the launcher's environment.

Imports no torch, so that it also runs on a login node. This is the only module that asks which rank this process is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from hsadml_dist.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The place of one rank in a job.

    Attributes:
        rank: Index of this process in the job, from 0.
        world_size: Number of ranks in the job.
        local_rank: Index of this process on its node, from 0.
        local_world_size: Number of ranks on this node.
        node_rank: Index of this node, from 0.
        num_nodes: Number of nodes.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    num_nodes: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which writes the files of the run."""
        return self.rank == 0

    def rank_range(self, count: int) -> range:
        """Return this rank's contiguous part of ``range(count)``; the sizes of the parts differ by at most one."""
        return split_range(count, self.rank, self.world_size)


def split_range(count: int, index: int, parts: int) -> range:
    """Return part ``index`` of ``range(count)`` cut into contiguous ``parts``; sizes differ by at most one."""
    return range(count * index // parts, count * (index + 1) // parts)


def allowed_world_sizes(global_batch: int) -> list[int]:
    """Return all numbers of ranks that divide ``global_batch`` evenly."""
    return [w for w in range(1, global_batch + 1) if global_batch % w == 0]


def topology_from_environ(environ: Mapping[str, str] = os.environ) -> Topology:
    """Return the topology set by the local launcher or by Slurm, or that of a single process.

    Raises:
        UsageError: The launcher's variables are incomplete, not numbers, or contradict one another.
    """
    try:
        if "RANK" in environ:
            topology = _launcher_topology(environ)
        elif "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
            topology = _slurm_topology(environ)
        else:
            return Topology()
    except (KeyError, ValueError) as error:
        raise UsageError(f"launcher's variables: missing or not a number: {error}") from error
    local_rank, local_size = topology.local_rank, topology.local_world_size
    rank, size = topology.rank, topology.world_size
    if 0 <= local_rank < local_size <= size and 0 <= rank < size:
        return topology
    place = f"rank {rank} of {size}, local rank {local_rank} of {local_size}"
    raise UsageError(f"launcher's variables: they contradict one another: {place}")


def launch_token(environ: Mapping[str, str] = os.environ) -> str:
    """Return a name that all ranks of one start share and that no other start has."""
    if "HSADML_LAUNCH" in environ:
        return environ["HSADML_LAUNCH"]
    if "SLURM_JOB_ID" in environ:
        return "-".join(environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    return f"{socket.gethostname()}-{os.getpid()}"


def cpu_threads_for_rank(topology: Topology, environ: Mapping[str, str] = os.environ) -> int:
    """Return how many CPU threads this rank may use: those of its Slurm task, or an even share of the processors."""
    given = environ.get("SLURM_CPUS_PER_TASK", "") if "SLURM_STEP_ID" in environ else ""
    if given.isdecimal():
        return max(1, int(given))
    return max(1, len(os.sched_getaffinity(0)) // topology.local_world_size)


def _launcher_topology(environ: Mapping[str, str]) -> Topology:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, world_size, local_rank, local_world_size = (int(environ[name]) for name in names)
    return Topology(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node_rank=rank // max(1, local_world_size),
        num_nodes=-(-world_size // max(1, local_world_size)),
    )


def _slurm_topology(environ: Mapping[str, str]) -> Topology:
    world_size = int(environ["SLURM_NTASKS"])
    # Slurm writes "2(x3),1" for three nodes with 2 tasks and one with 1.
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", str(world_size)).split(",")
    return Topology(
        rank=int(environ["SLURM_PROCID"]),
        world_size=world_size,
        local_rank=int(environ["SLURM_LOCALID"]),
        # The largest number stands for this node's: it only sets the number of threads.
        local_world_size=max(int(tasks.partition("(")[0]) for tasks in per_node),
        node_rank=int(environ.get("SLURM_NODEID", "0")),
        num_nodes=int(environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1"))),
    )
