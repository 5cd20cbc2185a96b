"""Rank script: a linear backbone and the loss on this rank's part of several batches."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from rank_script import with_comm

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.losses.centres import Centres
from hsadml_dist.losses.distributed_loss import DistributedLoss, LossCompute
from hsadml_dist.losses.margins import build_margin


def body(comm: Comm, case: str) -> list[dict[str, torch.Tensor]]:
    """Return the local gradients, before averaging, of each job in the file ``case``."""
    torch.set_num_threads(1)
    inputs = torch.load(case, weights_only=False)
    return [_step(comm, job, inputs) for job in inputs["jobs"]]


def _step(comm: Comm, job: Any, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    batch = inputs["batches"][job.classes]
    loss, backbone_FD = _loss(comm, job, inputs), batch["backbone"].clone().requires_grad_()
    values = []
    for part in _parts(job, comm.topology.rank):
        emb_BD, label_B = batch["x"][part] @ backbone_FD, batch["label"][part]
        values.append(loss(emb_BD, label_B, step=inputs["step"], count=len(batch["x"])))
        values[-1].backward()
    loss.end_step()
    answer = {"loss": torch.stack(values).sum().detach(), "backbone": backbone_FD.grad}
    answer["centres"] = loss.centres.weight.grad
    if loss.bias is not None:
        answer["bias"] = loss.bias.grad
    if loss.norms is not None:
        answer["norms"] = torch.stack([loss.norms.mean, loss.norms.deviation])
    return answer


def _loss(comm: Comm, job: Any, inputs: Mapping[str, Any]) -> DistributedLoss:
    rows = comm.topology.rank_range(job.classes) if job.layout == "sharded" else None
    compute = LossCompute(backward=job.backward, block=2, sample_rate=job.rate, seed=inputs["seed"])
    centres = Centres(job.classes, inputs["batches"][job.classes]["backbone"].shape[1], inputs["seed"], rows)
    loss = DistributedLoss(centres, build_margin(*job.settings), comm, job.layout, compute).double()
    if loss.norms is not None:
        loss.norms.mean.fill_(inputs["norms"][0])
        loss.norms.deviation.fill_(inputs["norms"][1])
    return loss


def _parts(job: Any, rank: int) -> list[slice]:
    start, size = sum(job.shares[:rank]), job.shares[rank]
    edges = [start + size * part // job.accumulate for part in range(job.accumulate + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


if __name__ == "__main__":
    with_comm(body)
