"""A plain PyTorch training step as a user would write it, and environment variables of local ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from hsadml_dist.config import Recipe
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm

SCALE = 30.0


def bare_step(net: nn.Module, comm: Comm, recipe: Recipe, batch: Batch, classes: int) -> Callable[[], None]:
    """Return a step: forward, backward, clipping, optimiser; net and batch are on the ranks' device."""
    replica = net if comm.group is None else DistributedDataParallel(net)
    centres = nn.Parameter(torch.randn(classes, recipe.model.embedding_dim, device=comm.device))
    parameters = [*net.parameters(), centres]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.optim.lr)

    def step() -> None:
        optimizer.zero_grad()
        cosine = functional.linear(functional.normalize(replica(batch.image)), functional.normalize(centres))
        functional.cross_entropy(SCALE * cosine, batch.label).backward()
        if comm.group is not None:
            comm.all_reduce_sum(centres.grad).div_(comm.topology.world_size)
        torch.nn.utils.clip_grad_norm_(parameters, recipe.engine.clip_norm)
        optimizer.step()

    return step


def rank_environ(rank: int, world: int, token: str) -> dict[str, str]:
    """Return the environment variables of one local rank."""
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    return {name: str(value) for name, value in place.items()} | {"HSADML_LAUNCH": token}
