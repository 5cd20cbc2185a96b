"""Asked at the start of every job of several ranks: are the engine's gradients those of the global mean?

An engine that adds where it should average, a loss scaled for the other, a wrapper of a wrapper: each trains, at a
learning rate wrong by the number of ranks, and nothing tells. So a tiny uneven batch goes through engine and loss, and
beside it through the bare network and a loss that sees all samples at once; their gradients must agree.

Legend of shapes: B local samples, N samples of all ranks, D embedding components, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from hsadml_dist.comm import Comm, SoloComm
from hsadml_dist.data.loader import Batch
from hsadml_dist.engine.protocol import Engine
from hsadml_dist.errors import EngineError
from hsadml_dist.losses.centres import Centres, Layout
from hsadml_dist.losses.distributed import DistributedLoss
from hsadml_dist.losses.margins import MarginLoss

SEED = 20220128
STEP = 1
ALLOWED = 0.02
"""Relative error that rounding in bf16 stays below; a wrong factor or a wrong mean is off by tenths."""


def check_gradients(
    engine: Engine, loss: MarginLoss, layout: Layout, dim: int, image: torch.Tensor, comm: Comm
) -> None:
    """Compare the engine's and the centres' gradients with the sum rule, on a batch that is gone afterwards.

    To be called by all ranks. Weights and buffers stay as they are.

    Args:
        engine: The engine with the network in it.
        loss: The loss that will be trained with.
        layout: Who holds the centres.
        dim: D.
        image: One input (1, ...), in the training's dtype and on its device; only its shape matters.
        comm: The ranks, in the loss's own group.

    Raises:
        EngineError: The gradients are not those of the global mean.
    """
    if comm.topology.world_size == 1:
        return
    batch, sizes = _tiny_batch(image, comm)
    classes = 2 * comm.topology.world_size + 1
    rows = comm.topology.part(classes) if layout == "sharded" else None
    trained = DistributedLoss(Centres(classes, dim, SEED, rows), loss, comm, layout).placed(image.dtype)
    torch.manual_seed(SEED)
    found = dict(engine.gradients(batch, lambda emb, label: trained(emb, label, step=STEP, count=sum(sizes))))
    whole = DistributedLoss(Centres(classes, dim, SEED), loss, SoloComm(comm.device)).placed(image.dtype)
    torch.manual_seed(SEED)
    expected = _by_the_sum_rule(engine, batch, whole, sizes, comm)
    _compare("the engine's gradients", found, expected, comm)
    _compare("the centres' gradients", *_centre_gradients(trained, whole, comm), comm)


def _tiny_batch(image: torch.Tensor, comm: Comm) -> tuple[Batch, list[int]]:
    """Return this rank's samples, two on rank 0 and four elsewhere, and all ranks' numbers of them."""
    sizes = [2 if rank == 0 else 4 for rank in range(comm.topology.world_size)]
    mine = sizes[comm.topology.rank]
    generator = torch.Generator().manual_seed(SEED + comm.topology.rank)
    images = torch.randn(mine, *image.shape[1:], generator=generator).to(image)
    label = (torch.arange(mine) + comm.topology.rank).to(image.device)
    return Batch(image=images, label=label, keys=("",) * mine), sizes


def _by_the_sum_rule(
    engine: Engine, batch: Batch, whole: DistributedLoss, sizes: list[int], comm: Comm
) -> dict[str, torch.Tensor]:
    """Return the network's gradients of the global mean: what each rank's samples add, summed."""
    own_BD = engine.embed(batch.image)
    emb_ND = comm.gather_rows(own_BD.detach().float().to(whole.centres.weight), sizes).requires_grad_()
    label_N = comm.gather_rows(batch.label, sizes)
    mean = whole(emb_ND, label_N, step=STEP, count=sum(sizes))
    whole.centres.weight.grad, pull_ND = torch.autograd.grad(mean, (whole.centres.weight, emb_ND))
    trained = {name: p for name, p in engine.model.named_parameters() if p.requires_grad}
    mine_BD = pull_ND.split(sizes)[comm.topology.rank].to(own_BD)
    grads = torch.autograd.grad(own_BD, list(trained.values()), mine_BD, allow_unused=True)
    named = zip(trained, grads, strict=True)
    return {name: comm.sum(grad.contiguous()) for name, grad in named if grad is not None}


def _centre_gradients(
    trained: DistributedLoss, whole: DistributedLoss, comm: Comm
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    found, expected = trained.centres.weight.grad, whole.centres.weight.grad
    if found is None or expected is None:
        raise EngineError("the loss gave the centres no gradient")
    if trained.layout == "sharded":
        return {"centres": comm.gather_rows(found)}, {"centres": expected}
    return {"centres": comm.sum(found) / comm.topology.world_size}, {"centres": expected}


def _compare(what: str, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], comm: Comm) -> None:
    """Refuse if the gradients, taken together, differ by more than rounding; all ranks answer alike."""
    one, other = (torch.cat([grads[name].flatten().double() for name in expected]) for grads in (found, expected))
    error = float((one - other).norm() / other.norm())
    errors = comm.gather(error)
    if all(one <= ALLOWED for one in errors):
        return
    if not all(map(math.isfinite, errors)):
        raise EngineError(f"{what} on drawn samples are not finite: the loss's scale or margin is too much for them")
    factor = float(one @ other / (other @ other))
    raise EngineError(
        f"{what} over {comm.topology.world_size} ranks are not those of the mean over the global batch: "
        f"relative error {max(errors):.2g}, about {factor:.3g} times as long; nothing was trained"
    )
