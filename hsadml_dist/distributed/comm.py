"""Collective operations of a job's ranks, over one training group and one control group.

The training group carries the tensors of a step (nccl on GPUs, gloo elsewhere). The control group of a training run is
always gloo: it carries flags and small objects, and keeps working while a device is busy with the training group.
"""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist

from hsadml_dist.distributed.topology import Topology
from hsadml_dist.json_parsing import parse_json


class Comm(Protocol):
    """The collective operations of a job's ranks.

    Every method is collective: every rank must call it, in the same order.
    """

    topology: Topology
    device: torch.device
    group: dist.ProcessGroup | None
    """The training group, for engines that reduce by themselves; None for a job of one rank."""

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add ``tensor`` (any shape, on the training device) over all ranks in place, and return it."""

    def all_reduce_max_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take the maximum of ``tensor`` (any shape, on the training device) over all ranks in place, and return it."""

    def all_gather_sizes(self, count: int) -> list[int]:
        """Return the ``count`` of every rank, in rank order, over the training group."""

    def all_gather_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        """Return the rows of all ranks in rank order, ``(sum of N, ...)``; N may differ by rank and may be 0.

        Args:
            rows_ND: This rank's rows.
            sizes: N of each rank, if known; otherwise it is gathered first.
        """

    def reduce_scatter_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Add ``rows_ND`` (sum of ``sizes``, ...) over all ranks; return this rank's part, ``sizes[rank]`` rows."""

    def new_train_group(self) -> Comm:
        """Return a Comm of the same ranks with its own training group, for messages that may overlap with others."""

    def new_control_group(self) -> Comm:
        """Return a Comm of the same ranks with its own control group, for a thread other than the training thread."""

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise maximum (fp64) over all ranks, in one message of the control group."""

    def broadcast_json(self, value: Any) -> Any:
        """Return rank 0's ``value``, which JSON can hold, over the control group; tuples arrive as lists."""

    def all_gather_json(self, value: Any) -> list[Any]:
        """Return the ``value`` of every rank, in rank order, over the control group; see :meth:`broadcast_json`."""

    def close(self) -> None:
        """Wait for all ranks and leave the groups."""


class SoloComm:
    """A job of one rank: every collective is the identity. See :class:`Comm` for the methods."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.topology = Topology()
        self.device = device or torch.device("cpu")
        self.group: dist.ProcessGroup | None = None

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def all_reduce_max_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def all_gather_sizes(self, count: int) -> list[int]:
        return [count] * self.topology.world_size

    def all_gather_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        return rows_ND

    def reduce_scatter_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        return rows_ND

    def new_train_group(self) -> Comm:
        return self

    def new_control_group(self) -> Comm:
        return self

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def broadcast_json(self, value: Any) -> Any:
        return json.loads(json.dumps(value))

    def all_gather_json(self, value: Any) -> list[Any]:
        return [json.loads(json.dumps(value))] * self.topology.world_size

    def close(self) -> None:
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
        return tensor.mul_(self.topology.world_size)

    def all_gather_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        return torch.cat([rows_ND] * self.topology.world_size)

    def reduce_scatter_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        return rows_ND.split(list(sizes))[self.topology.rank] * self.topology.world_size


class TorchComm:
    """The ranks of a training run over torch.distributed. See :class:`Comm` for the methods."""

    def __init__(self, topology: Topology, store: dist.Store, device: torch.device, timeout_seconds: int) -> None:
        self.topology, self.device, self._control_device = topology, device, torch.device("cpu")
        self._timeout = datetime.timedelta(seconds=timeout_seconds)
        # torch keeps only the part of a store that is written in C++: methods in Python would be gone.
        self._store = store
        rank, size = topology.rank, topology.world_size
        dist.init_process_group(_backend(device), store=store, rank=rank, world_size=size, timeout=self._timeout)
        self.group: dist.ProcessGroup | None = dist.group.WORLD
        self._control = dist.new_group(backend="gloo", timeout=self._timeout)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_reduce_max_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def all_gather_sizes(self, count: int) -> list[int]:
        counts = torch.zeros(self.topology.world_size, dtype=torch.int64, device=self.device)
        counts[self.topology.rank] = count
        return self.all_reduce_sum(counts).tolist()

    def all_gather_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        sizes = self.all_gather_sizes(len(rows_ND)) if sizes is None else sizes
        # Only equal shapes can be gathered: every rank pads to the largest and the padding is cut off afterwards.
        padded = _padded(rows_ND, max(sizes))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def reduce_scatter_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        parts = [_padded(part, max(sizes)) for part in rows_ND.split(list(sizes))]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts, group=self.group)
        return own[: sizes[self.topology.rank]]

    def new_train_group(self) -> Comm:
        twin = copy.copy(self)
        twin.group = dist.new_group(timeout=self._timeout)
        return twin

    def new_control_group(self) -> Comm:
        twin = copy.copy(self)
        twin._control = dist.new_group(backend="gloo", timeout=self._timeout)
        return twin

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        maximum = torch.tensor(values, dtype=torch.float64, device=self._control_device)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=self._control)
        return maximum.tolist()

    # Not torch's object collectives: they unpickle what arrives, which may run code.
    def broadcast_json(self, value: Any) -> Any:
        text = self._encoded(value if self.topology.is_rank_zero else None)
        size = torch.tensor(len(text), dtype=torch.int64, device=self._control_device)
        dist.broadcast(size, group_src=0, group=self._control)
        text = text if self.topology.is_rank_zero else text.new_empty(int(size))
        dist.broadcast(text, group_src=0, group=self._control)
        return _decoded(text)

    def all_gather_json(self, value: Any) -> list[Any]:
        text = self._encoded(value)
        sizes = torch.zeros(self.topology.world_size, dtype=torch.int64, device=self._control_device)
        sizes[self.topology.rank] = len(text)
        dist.all_reduce(sizes, group=self._control)
        padded = _padded(text, int(sizes.max()))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self._control)
        return [_decoded(part[:size]) for part, size in zip(parts, sizes.tolist(), strict=True)]

    def _encoded(self, value: Any) -> torch.Tensor:
        return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self._control_device)

    def close(self) -> None:
        dist.barrier(group=self._control)
        dist.destroy_process_group()


class _BorrowedGroupComm(TorchComm):
    """The ranks of a process group that another program made and will destroy; it carries all messages."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        # Nodes are not known here: nothing that takes a borrowed group needs them.
        self.topology = Topology(rank=dist.get_rank(group), world_size=dist.get_world_size(group))
        self.device = self._control_device = device
        self.group, self._control = group, group

    def new_train_group(self) -> Comm:
        ranks = dist.get_process_group_ranks(self.group)
        return _BorrowedGroupComm(dist.new_group(ranks, use_local_synchronization=True), self.device)

    def new_control_group(self) -> Comm:
        return self.new_train_group()

    def close(self) -> None:
        """Leave the group as it is: it belongs to the program that made it."""


def comm_from_process_group(group: dist.ProcessGroup | None, device: torch.device) -> Comm:
    """Return a Comm over an existing process group, for use inside another program's training loop.

    ``close`` leaves the group alone. Without torch.distributed, this is a :class:`SoloComm`.

    Args:
        group: The group; None means the default group.
        device: Where this rank's tensors are; the group's backend must support it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return SoloComm(device)
    group = dist.group.WORLD if group is None else group
    assert group is not None, "the default group exists once torch.distributed is initialised"
    return _BorrowedGroupComm(group, device)


def ensure_process_group(device: torch.device) -> None:
    """Initialise torch.distributed in a job of one rank, for a library that requires it; larger jobs have done so."""
    if not dist.is_initialized():
        dist.init_process_group(_backend(device), store=dist.HashStore(), rank=0, world_size=1)


def _decoded(text: torch.Tensor) -> Any:
    return parse_json(text.cpu().numpy().tobytes())


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def _padded(rows_ND: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``count`` rows, contiguous: the given ones followed by zeros."""
    padded = rows_ND.new_zeros((count, *rows_ND.shape[1:]))
    padded[: len(rows_ND)] = rows_ND
    return padded
