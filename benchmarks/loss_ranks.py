"""One rank of ``benchmarks/loss.py``: bytes sent per step and memory of its centres."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from loss_variants import SEED, Answer, our_margin, problem_of, say

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.distributed.topology import topology_from_environ
from hsadml_dist.engine.head import Head
from hsadml_dist.losses.centres import Centres, Layout
from hsadml_dist.losses.distributed_loss import MEBIBYTE, DistributedLoss
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rendezvous import join_run


def messages(order: Answer) -> None:
    """Run one rank: print the bytes sent per step for replicated, sharded and DDP-reduced centres."""
    comm = join_run(RunFolder(Path(order["folder"])), topology_from_environ(), {}, 120, lambda: False).comm
    layouts: Sequence[Layout] = ("replicated", "sharded")
    answer = {f"ours-{layout}": _sent(order, comm, layout) for layout in layouts}
    answer["ddp-all-reduce"] = _sent_by_plain_reduction(order, comm)
    if comm.topology.is_rank_zero:
        say(answer)
    comm.close()
    os._exit(0)


def centre_memory(order: Answer) -> None:
    """Run one rank: take an AdamW step and print the bytes of its centres."""
    comm = join_run(RunFolder(Path(order["folder"])), topology_from_environ(), {}, 120, lambda: False).comm
    rows = comm.topology.rank_range(order["classes"])
    loss = DistributedLoss(
        Centres(order["classes"], order["dim"], SEED, rows), our_margin(order["loss"]), comm, "sharded"
    )
    optimizer = torch.optim.AdamW(loss.parameters())
    head = Head(loss, optimizer, comm, clip_norm=None)
    share = loss(*_own_samples(order, comm), step=1, count=order["batch"])
    share.backward()
    head.average_gradients(share.detach())
    head.apply(1e-3, head.grad_norm())
    weight = loss.centres.weight
    held = {"weights": weight, "gradient": weight.grad} | optimizer.state[weight]
    sizes = comm.all_gather_json({name: tensor.nbytes for name, tensor in held.items()})
    if comm.topology.is_rank_zero:
        say({"held_bytes": max(sizes, key=lambda size: sum(size.values()))})
    comm.close()
    os._exit(0)


class CountingComm:
    """Count the bytes that a rank sends under the ring algorithms of gloo and nccl.

    Over W ranks a sum or a maximum of n bytes sends ``2 (W - 1) / W * n``; gathering or scattering rows sends W - 1
    times the largest rank's rows.
    """

    def __init__(self, comm: Comm) -> None:
        self.topology, self.device, self.group = comm.topology, comm.device, comm.group
        self.sent, self.messages = 0.0, 0
        self._comm = comm

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Comm`."""
        self._reduces(tensor.numel() * tensor.element_size())
        return self._comm.all_reduce_sum(tensor)

    def all_reduce_max_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Comm`."""
        self._reduces(tensor.numel() * tensor.element_size())
        return self._comm.all_reduce_max_tensor(tensor)

    def all_gather_sizes(self, count: int) -> list[int]:
        """See :class:`Comm`."""
        self._reduces(8 * self.topology.world_size)
        return self._comm.all_gather_sizes(count)

    def all_gather_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        """See :class:`Comm`."""
        sizes = self.all_gather_sizes(len(rows_ND)) if sizes is None else sizes
        self._passes_rows(rows_ND, sizes)
        return self._comm.all_gather_rows(rows_ND, sizes)

    def reduce_scatter_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """See :class:`Comm`."""
        self._passes_rows(rows_ND, sizes)
        return self._comm.reduce_scatter_rows(rows_ND, sizes)

    def new_train_group(self) -> Comm:
        """See :class:`Comm`."""
        raise NotImplementedError("a second count would be missed")

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """See :class:`Comm`."""
        return self._comm.all_reduce_max(values)

    def broadcast_json(self, value: Any) -> Any:
        """See :class:`Comm`."""
        return self._comm.broadcast_json(value)

    def all_gather_json(self, value: Any) -> list[Any]:
        """See :class:`Comm`."""
        return self._comm.all_gather_json(value)

    def close(self) -> None:
        """See :class:`Comm`."""
        self._comm.close()

    def _reduces(self, size: int) -> None:
        world = self.topology.world_size
        self._sends(2 * (world - 1) / world * size)

    def _passes_rows(self, rows_ND: torch.Tensor, sizes: Sequence[int]) -> None:
        row = math.prod(rows_ND.shape[1:]) * rows_ND.element_size()
        self._sends((self.topology.world_size - 1) * max(sizes) * row)

    def _sends(self, size: float) -> None:
        self.sent += size
        self.messages += 1


def _sent(order: Answer, comm: Comm, layout: Layout) -> Answer:
    counting = CountingComm(comm)
    rows = comm.topology.rank_range(order["classes"]) if layout == "sharded" else None
    centres = Centres(order["classes"], order["dim"], SEED, rows)
    loss = DistributedLoss(centres, our_margin(order["loss"]), counting, layout).to(comm.device)
    head = Head(loss, torch.optim.SGD(loss.parameters()), counting, clip_norm=None)
    emb_BD, label_B = _own_samples(order, comm)
    began = time.process_time()
    share = loss(emb_BD, label_B, step=1, count=order["batch"])
    share.backward()
    head.average_gradients(share.detach())
    return {
        "seconds": time.process_time() - began,
        "sent_bytes": round(counting.sent),
        "messages": counting.messages,
        "centre_mib": centres.weight.numel() * centres.weight.element_size() / MEBIBYTE,
    }


def _sent_by_plain_reduction(order: Answer, comm: Comm) -> Answer:
    counting = CountingComm(comm)
    grad_CD = torch.zeros(order["classes"], order["dim"], device=comm.device)
    began = time.process_time()
    counting.all_reduce_sum(grad_CD)
    return {
        "seconds": time.process_time() - began,
        "sent_bytes": round(counting.sent),
        "messages": counting.messages,
        "centre_mib": grad_CD.numel() * grad_CD.element_size() / MEBIBYTE,
    }


def _own_samples(order: Answer, comm: Comm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's part of the batch."""
    emb_ND, label_N = problem_of(order, device=str(comm.device)).samples()
    mine = comm.topology.rank_range(order["batch"])
    part = slice(mine.start, mine.stop)
    return emb_ND.detach()[part].requires_grad_(), label_N[part]
