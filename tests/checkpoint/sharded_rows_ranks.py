"""Train and save a head with sharded centres, or load it; the case says which: ``save`` or ``load``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rank_script import with_comm

from hsadml_dist.checkpoint.layout import CheckpointName, TrainingProgress
from hsadml_dist.checkpoint.load import load_checkpoint
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.config.recipe import OptimConfig
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.head import Head
from hsadml_dist.errors import HsadmlError
from hsadml_dist.losses.centres import Centres
from hsadml_dist.losses.distributed_loss import DistributedLoss
from hsadml_dist.losses.margins import build_margin
from hsadml_dist.optim import build_optimizer
from hsadml_dist.run.folder import RunFolder

DIM, STEPS = 5, 3


def body(comm: Comm, case: str) -> dict[str, Any]:
    """Return this rank's rows and groups."""
    task = json.loads(case)
    run, head = RunFolder(Path(task["run"])), _head(comm, task["classes"], task["seed"])
    if task["do"] == "load":
        state = load_checkpoint(run, CheckpointName(STEPS, 1), head.rows)
        head.load(state.groups)
        return _answer(head)
    _train(head, comm, task["classes"])
    try:
        save_checkpoint(run, run.attempt(1), _state(head, comm), comm)
    except HsadmlError as fault:
        return {"fault": str(fault)}
    return _answer(head)


def _head(comm: Comm, classes: int, seed: int) -> Head:
    centres = Centres(classes, DIM, seed, comm.topology.rank_range(classes))
    loss = DistributedLoss(centres, build_margin("sphereface2"), comm, "sharded")
    config = OptimConfig(name="adamw", lr=0.1)
    return Head(loss, build_optimizer(loss.parameters(), config, decay=False), comm, 1.0)


def _train(head: Head, comm: Comm, classes: int) -> None:
    emb_ND = torch.randn(6, DIM, generator=torch.Generator().manual_seed(1))
    mine = comm.topology.rank_range(6)
    for step in range(1, STEPS + 1):
        head.zero_grad()
        label_B = torch.arange(mine.start, mine.stop) * step % classes
        share = head.loss(emb_ND[mine.start : mine.stop], label_B, step=step, count=6)
        share.backward()
        head.average_gradients(share.detach())
        head.apply(0.1, head.grad_norm())


def _state(head: Head, comm: Comm) -> TrainingState:
    progress = TrainingProgress(
        step=STEPS, consumed=18, seed=0, fingerprint="f", data_digest="d", world_size=comm.topology.world_size
    )
    model = {"model": {"weight": torch.ones(2)}, "model_moments": {}}
    return TrainingState(groups=model | head.state(), progress=progress, rows=head.rows)


def _answer(head: Head) -> dict[str, Any]:
    return {"rows": head.rows, "groups": head.state()}


if __name__ == "__main__":
    with_comm(body)
