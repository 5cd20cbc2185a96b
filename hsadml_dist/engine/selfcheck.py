"""Asked at the start of every job of several ranks: are the engine's gradients those of the global mean?

An engine that adds where it should average, a loss scaled for the other, a wrapper of a wrapper: each trains, at a
learning rate wrong by the number of ranks, and nothing tells. So a tiny uneven batch goes through the bare network and
a loss that sees all samples at once, before any engine has touched the network, and then through engine and loss; their
gradients must agree.

Legend of shapes: B local samples, N samples of all ranks, D embedding components, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm, SoloComm
from hsadml_dist.engine.base import Engine, forward_embeddings, preserve_buffers
from hsadml_dist.errors import EngineError
from hsadml_dist.losses.centres import Centres, Layout
from hsadml_dist.losses.distributed_loss import DistributedLoss
from hsadml_dist.losses.margins import MarginLoss
from hsadml_dist.models.network import Precision

CHECK_SEED = 20220128
CHECK_STEP = 1
MAX_RELATIVE_ERROR = 0.02
"""Relative error that rounding in bf16 stays below; a wrong factor or a wrong mean is off by tenths."""


@dataclass(frozen=True, kw_only=True)
class ReferenceGradients:
    """What the gradients of the global mean are, by the sum rule.

    Attributes:
        image: One input (1, ...), in the training's dtype and on its device; only its shape matters.
        loss: The loss that will be trained with.
        dim: D.
        network: The network's gradients by parameter name, on the CPU.
        centre_CD: The centres' gradient.
    """

    image: torch.Tensor
    loss: MarginLoss
    dim: int
    network: Mapping[str, torch.Tensor]
    centre_CD: torch.Tensor


def reference_gradients(
    model: nn.Module, precision: Precision, loss: MarginLoss, dim: int, image: torch.Tensor, comm: Comm
) -> ReferenceGradients | None:
    """Return the gradients that an engine is to find on a drawn batch; None for one rank, which cannot be wrong so.

    To be called by all ranks, before an engine gets the network. Weights and buffers stay as they are.

    Args:
        model: The bare network, on the training's device.
        precision: As the engine's.
        loss: The loss that will be trained with.
        dim: D.
        image: One input (1, ...), in the training's dtype and on its device; only its shape matters.
        comm: The ranks, in the loss's own group.
    """
    if comm.topology.world_size == 1:
        return None
    batch, sizes = _tiny_batch(image, comm)
    whole = DistributedLoss(Centres(_classes(comm), dim, CHECK_SEED), loss, SoloComm(comm.device)).placed(image.dtype)
    torch.manual_seed(CHECK_SEED)
    with preserve_buffers(model):
        own_BD = forward_embeddings(model, batch.image, precision)
    emb_ND = comm.all_gather_rows(own_BD.detach().float().to(whole.centres.weight), sizes).requires_grad_()
    mean = whole(emb_ND, comm.all_gather_rows(batch.label, sizes), step=CHECK_STEP, count=sum(sizes))
    centre_CD, pull_ND = torch.autograd.grad(mean, (whole.centres.weight, emb_ND))
    pull_BD = pull_ND.split(sizes)[comm.topology.rank].to(own_BD)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(own_BD, list(trained.values()), pull_BD, allow_unused=True)
    named = {
        name: comm.all_reduce_sum(g.contiguous()).cpu() for name, g in zip(trained, grads, strict=True) if g is not None
    }
    return ReferenceGradients(image=image, loss=loss, dim=dim, network=named, centre_CD=centre_CD)


def check_gradients(engine: Engine, rule: ReferenceGradients | None, layout: Layout, comm: Comm) -> None:
    """Compare the engine's and the centres' gradients with the sum rule, on a batch that is gone afterwards.

    To be called by all ranks. Weights and buffers stay as they are.

    Args:
        engine: The engine with the network in it.
        rule: What :func:`reference_gradients` gave.
        layout: Who holds the centres.
        comm: The ranks, in the loss's own group.

    Raises:
        EngineError: The gradients are not those of the global mean.
    """
    if rule is None:
        return
    batch, sizes = _tiny_batch(rule.image, comm)
    rows = comm.topology.rank_range(_classes(comm)) if layout == "sharded" else None
    centres = Centres(_classes(comm), rule.dim, CHECK_SEED, rows)
    trained = DistributedLoss(centres, rule.loss, comm, layout).placed(rule.image.dtype)
    torch.manual_seed(CHECK_SEED)
    found = engine.gradients(batch, lambda emb, label: trained(emb, label, step=CHECK_STEP, count=sum(sizes)))
    _compare("the engine's gradients", found, rule.network, comm)
    own = [("centres", _centre_gradient(trained, comm))]
    _compare("the centres' gradients", own, {"centres": rule.centre_CD}, comm)


def _classes(comm: Comm) -> int:
    return 2 * comm.topology.world_size + 1


def _tiny_batch(image: torch.Tensor, comm: Comm) -> tuple[Batch, list[int]]:
    """Return this rank's samples, two on rank 0 and four elsewhere, and all ranks' numbers of them."""
    sizes = [2 if rank == 0 else 4 for rank in range(comm.topology.world_size)]
    mine = sizes[comm.topology.rank]
    generator = torch.Generator().manual_seed(CHECK_SEED + comm.topology.rank)
    images = torch.randn(mine, *image.shape[1:], generator=generator).to(image)
    label = (torch.arange(mine) + comm.topology.rank).to(image.device)
    return Batch(image=images, label=label, keys=("",) * mine), sizes


def _centre_gradient(trained: DistributedLoss, comm: Comm) -> torch.Tensor:
    grad = trained.centres.weight.grad
    if grad is None:
        raise EngineError("the loss gave the centres no gradient")
    return (
        comm.all_gather_rows(grad)
        if trained.layout == "sharded"
        else comm.all_reduce_sum(grad) / comm.topology.world_size
    )


def _compare(
    what: str, found: Iterable[tuple[str, torch.Tensor]], expected: Mapping[str, torch.Tensor], comm: Comm
) -> None:
    """Refuse if the gradients, taken together, differ by more than rounding; all ranks answer alike.

    One at a time: all of them at once would take more memory than the training.
    """
    apart, length, along = 0.0, 0.0, 0.0
    left = dict(expected)
    for name, grad in found:
        other = left.pop(name, None)
        if other is not None:
            one, other = grad.cpu().double().flatten(), other.cpu().double().flatten()
            apart, length = apart + float((one - other).square().sum()), length + float(other @ other)
            along += float(one @ other)
    missed = sum(float(other.double().square().sum()) for other in left.values())
    apart, length = apart + missed, length + missed
    error = math.sqrt(apart / length) if length else 0.0
    errors = comm.all_gather_object(error)
    if all(one <= MAX_RELATIVE_ERROR for one in errors):
        return
    if not all(map(math.isfinite, errors)):
        raise EngineError(f"{what} on drawn samples are not finite: the loss's scale or margin is too much for them")
    factor = along / length
    raise EngineError(
        f"{what} over {comm.topology.world_size} ranks are not those of the mean over the global batch: "
        f"relative error {max(errors):.2g}, about {factor:.3g} times as long; nothing was trained"
    )
