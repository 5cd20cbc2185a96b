"""Ranks and their two groups: the only module that asks which process this is.

The training group carries tensors of the step (nccl on GPUs, gloo elsewhere). The control group is always gloo: it
carries votes and small objects, and goes on working while the training group is busy on a device.
"""

from __future__ import annotations

import copy
import datetime
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import UsageError

LOOPBACK = "127.0.0.1"


class Comm(Protocol):
    """What the ranks of a job can do together; every method but ``close`` is called by all ranks in the same order."""

    topology: Topology
    device: torch.device
    group: dist.ProcessGroup | None
    """The training group, for engines that reduce by themselves; None for a job of one rank."""

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add ``tensor`` (any shape, the training device) over all ranks, in place; returns it."""
        ...

    def all_reduce_max_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take the largest of ``tensor`` (any shape, the training device) over all ranks, in place; returns it."""
        ...

    def all_gather_sizes(self, count: int) -> list[int]:
        """Return the numbers that the ranks gave, in rank order; over the training group."""
        ...

    def all_gather_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        """Return the rows of all ranks in rank order, ``(sum of N, ...)``; N may differ by rank and may be 0.

        Args:
            rows_ND: This rank's rows.
            sizes: N of each rank, where it is known already.
        """
        ...

    def reduce_scatter_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Add ``rows_ND`` (sum of ``sizes``, ...) over all ranks; return this rank's part, ``sizes[rank]`` rows."""
        ...

    def new_train_group(self) -> Comm:
        """Return the same ranks with a training group of their own, whose messages mix with no other's."""
        ...

    def new_control_group(self) -> Comm:
        """Return the same ranks with a control group of their own, for a thread beside the one that trains."""
        ...

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each number (fp64) that any rank gave; over the control group, in one message."""
        ...

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value (any picklable object) on every rank; over the control group."""
        ...

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the values of all ranks in rank order (any picklable object); over the control group."""
        ...

    def close(self) -> None:
        """Leave the groups, after all ranks have come here."""
        ...


class SoloComm:
    """A job of one rank: every collective is the identity."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.topology = Topology()
        self.device = device or torch.device("cpu")
        self.group: dist.ProcessGroup | None = None

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Comm`."""
        return tensor

    def all_reduce_max_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Comm`."""
        return tensor

    def all_gather_sizes(self, count: int) -> list[int]:
        """See :class:`Comm`."""
        return [count]

    def all_gather_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        """See :class:`Comm`."""
        return rows_ND

    def reduce_scatter_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """See :class:`Comm`."""
        return rows_ND

    def new_train_group(self) -> Comm:
        """See :class:`Comm`."""
        return self

    def new_control_group(self) -> Comm:
        """See :class:`Comm`."""
        return self

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """See :class:`Comm`."""
        return list(values)

    def broadcast_object(self, value: Any) -> Any:
        """See :class:`Comm`."""
        return value

    def all_gather_object(self, value: Any) -> list[Any]:
        """See :class:`Comm`."""
        return [value]

    def close(self) -> None:
        """See :class:`Comm`."""
        if dist.is_initialized():  # by :func:`ensure_process_group`
            dist.destroy_process_group()


class FakeComm(SoloComm):
    """One rank of a job without its peers, for tests: they contribute the same values as this rank.

    Override a method to make the peers contribute something else.
    """

    def __init__(self, rank: int, size: int, device: torch.device | None = None) -> None:
        super().__init__(device)
        self.topology = Topology(rank=rank, world_size=size, local_rank=rank, local_world_size=size)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Comm`."""
        return tensor.mul_(self.topology.world_size)

    def all_gather_sizes(self, count: int) -> list[int]:
        """See :class:`Comm`."""
        return [count] * self.topology.world_size

    def all_gather_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        """See :class:`Comm`."""
        return torch.cat([rows_ND] * self.topology.world_size)

    def reduce_scatter_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """See :class:`Comm`."""
        return rows_ND.split(list(sizes))[self.topology.rank] * self.topology.world_size

    def all_gather_object(self, value: Any) -> list[Any]:
        """See :class:`Comm`."""
        return [value] * self.topology.world_size


class TorchComm:
    """The ranks of a job over torch.distributed."""

    def __init__(self, topology: Topology, store: dist.Store, device: torch.device, timeout_seconds: int) -> None:
        self.topology = topology
        self.device = device
        self._timeout = timeout = datetime.timedelta(seconds=timeout_seconds)
        dist.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=topology.rank,
            world_size=topology.world_size,
            timeout=timeout,
        )
        self.group: dist.ProcessGroup | None = dist.group.WORLD
        self._control = dist.new_group(backend="gloo", timeout=timeout)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Comm`."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_reduce_max_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Comm`."""
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def all_gather_sizes(self, count: int) -> list[int]:
        """See :class:`Comm`."""
        counts = torch.zeros(self.topology.world_size, dtype=torch.int64, device=self.device)
        counts[self.topology.rank] = count
        return self.all_reduce_sum(counts).tolist()

    def all_gather_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        """See :class:`Comm`."""
        sizes = self.all_gather_sizes(len(rows_ND)) if sizes is None else sizes
        # Only equal shapes can be gathered: every rank pads to the largest and the padding is cut off afterwards.
        padded = _padded(rows_ND, max(sizes))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def reduce_scatter_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """See :class:`Comm`."""
        parts = [_padded(part, max(sizes)) for part in rows_ND.split(list(sizes))]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter(mine, parts, group=self.group)
        return mine[: sizes[self.topology.rank]]

    def new_train_group(self) -> Comm:
        """See :class:`Comm`."""
        twin = copy.copy(self)
        twin.group = dist.new_group(timeout=self._timeout)
        return twin

    def new_control_group(self) -> Comm:
        """See :class:`Comm`."""
        twin = copy.copy(self)
        twin._control = dist.new_group(backend="gloo", timeout=self._timeout)
        return twin

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """See :class:`Comm`."""
        ballot = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(ballot, op=dist.ReduceOp.MAX, group=self._control)
        return ballot.tolist()

    def broadcast_object(self, value: Any) -> Any:
        """See :class:`Comm`."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """See :class:`Comm`."""
        boxes: list[Any] = [None] * self.topology.world_size
        dist.all_gather_object(boxes, value, group=self._control)
        return boxes

    def close(self) -> None:
        """See :class:`Comm`."""
        dist.barrier(group=self._control)
        dist.destroy_process_group()


def ensure_process_group(device: torch.device) -> None:
    """Give a job of one rank a training group, for a library that cannot do without one; others have theirs already."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _padded(rows_ND: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``count`` rows, contiguous: those given and zeros after them."""
    padded = rows_ND.new_zeros((count, *rows_ND.shape[1:]))
    padded[: len(rows_ND)] = rows_ND
    return padded


@dataclass(frozen=True, kw_only=True)
class StoreAddress:
    """Where rank 0 waits for its peers."""

    host: str
    port: int


def topology_from_environ(environ: Mapping[str, str] = os.environ) -> Topology:
    """Return this process's place, from the local launcher's variables or from Slurm's, else that of a lone process.

    Raises:
        UsageError: A launcher's variables are there only in part, one is no number, or they contradict one another.
    """
    try:
        if "RANK" in environ:
            return _checked(_place_of_launcher(environ))
        if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
            return _checked(_place_in_step(environ))
    except (KeyError, ValueError) as fault:
        raise UsageError(f"the launcher's variables are incomplete or no numbers: {fault}") from fault
    return Topology()


def launch_token(environ: Mapping[str, str] = os.environ) -> str:
    """Return a name that all ranks of one start share and that no other start has."""
    if "HSADML_LAUNCH" in environ:
        return environ["HSADML_LAUNCH"]
    if "SLURM_JOB_ID" in environ:
        return "-".join(environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    return f"{socket.gethostname()}-{os.getpid()}"


def local_device(topology: Topology) -> torch.device:
    """Return the GPU of this local rank where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", topology.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def cpu_threads_for_rank(topology: Topology, environ: Mapping[str, str] = os.environ) -> int:
    """Return how many CPU threads this rank may use: what Slurm gave its task, else an even share of the processors."""
    given = environ.get("SLURM_CPUS_PER_TASK", "") if "SLURM_STEP_ID" in environ else ""
    if given.isdecimal():
        return max(1, int(given))
    return max(1, len(os.sched_getaffinity(0)) // topology.local_world_size)


def create_store(topology: Topology, timeout_seconds: int) -> tuple[dist.TCPStore, StoreAddress]:
    """Start rank 0's store on a free port; the port is published afterwards, so it cannot be taken in between."""
    host = LOOPBACK if topology.num_nodes == 1 else _reachable_name()
    timeout = datetime.timedelta(seconds=timeout_seconds)
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    return store, StoreAddress(host=host, port=store.port)


def connect_store(address: StoreAddress, timeout_seconds: int) -> dist.TCPStore:
    """Connect to the store that rank 0 has published."""
    timeout = datetime.timedelta(seconds=timeout_seconds)
    return dist.TCPStore(address.host, address.port, is_master=False, wait_for_workers=False, timeout=timeout)


def _checked(topology_from_environ: Topology) -> Topology:
    if (
        0
        <= topology_from_environ.local_rank
        < topology_from_environ.local_world_size
        <= topology_from_environ.world_size
        and 0 <= topology_from_environ.rank < topology_from_environ.world_size
    ):
        return topology_from_environ
    raise UsageError(
        f"the launcher's variables contradict one another: rank {topology_from_environ.rank} of {topology_from_environ.world_size}, "
        f"local rank {topology_from_environ.local_rank} of {topology_from_environ.local_world_size}"
    )


def _place_of_launcher(environ: Mapping[str, str]) -> Topology:
    local_world = int(environ["LOCAL_WORLD_SIZE"])
    rank, world = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    return Topology(
        rank=rank,
        world_size=world,
        local_rank=int(environ["LOCAL_RANK"]),
        local_world_size=local_world,
        node_rank=rank // max(1, local_world),
        num_nodes=-(-world // max(1, local_world)),
    )


def _place_in_step(environ: Mapping[str, str]) -> Topology:
    world = int(environ["SLURM_NTASKS"])
    nodes = int(environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1")))
    shares = _shares(environ.get("SLURM_STEP_TASKS_PER_NODE", str(world)))
    return Topology(
        rank=int(environ["SLURM_PROCID"]),
        world_size=world,
        local_rank=int(environ["SLURM_LOCALID"]),
        # The largest share stands for this node's: it only sets the number of threads.
        local_world_size=max(shares),
        node_rank=int(environ.get("SLURM_NODEID", "0")),
        num_nodes=nodes,
    )


def _shares(text: str) -> list[int]:
    """Return the distinct numbers of tasks a node in Slurm's ``2(x3),1``: 2 and 1."""
    return [int(share.partition("(")[0]) for share in text.split(",")]


def _reachable_name() -> str:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return LOOPBACK
    return name
