"""A linear backbone and the loss on uneven shares of one batch; gradients are averaged as engines do."""

from __future__ import annotations

from typing import Any

import torch
from rank_start import with_comm

from hsadml_dist.comm import Comm
from hsadml_dist.losses.centres import ReplicatedCentres
from hsadml_dist.losses.distributed import DistributedLoss
from hsadml_dist.losses.margins import Annealing, build_margin

SHARES = {1: (11,), 2: (0, 11), 3: (4, 0, 7), 4: (6, 0, 1, 4)}
"""Samples of each rank, by the number of ranks."""


def body(comm: Comm, case: str) -> dict[str, Any]:
    """Return the averaged gradients and loss for each (loss, margin, scale) of the batch file named by ``case``."""
    torch.manual_seed(comm.topology.rank)
    batch = torch.load(case)
    shares, rank = SHARES[comm.topology.world_size], comm.topology.rank
    mine = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
    answers = [_step(comm, batch, mine, settings) for settings in batch["cases"]]
    return {"answers": answers, "initial": ReplicatedCentres(5, 6, seed=1).weight.detach()}


def _step(comm: Comm, batch: dict[str, Any], mine: slice, settings: tuple[str, float, float]) -> dict[str, Any]:
    name, margin, scale = settings
    backbone_FD = batch["backbone"].clone().requires_grad_()
    centres = ReplicatedCentres(5, 6, seed=1).double()
    loss = DistributedLoss(centres, build_margin(name, margin, scale, Annealing()), comm)
    share = loss(batch["x"][mine] @ backbone_FD, batch["label"][mine], step=batch["step"], count=len(batch["x"]))
    share.backward()
    world = comm.topology.world_size
    return {
        "loss": comm.sum(share.detach()) / world,
        "backbone": comm.sum(backbone_FD.grad) / world,
        "centres": comm.sum(centres.weight.grad) / world,
    }


if __name__ == "__main__":
    with_comm(body)
