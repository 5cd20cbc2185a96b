"""Check at the start of a job that the engine computes the gradients of the mean over the global batch.

An engine that sums where it should average, a loss scaled for the other case, or two nested wrappers still train, with
a learning rate off by the number of ranks, and nothing shows it. Therefore, with several ranks, a small
uneven batch is passed through the bare network and a loss over all samples before any engine wraps the network, and
then through engine and loss; their gradients must agree.

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
"""Rounding in bf16 stays below this relative error; an incorrect factor or mean exceeds it by far."""


@dataclass(frozen=True, kw_only=True)
class ReferenceGradients:
    """Gradients of the global mean, computed without an engine.

    Attributes:
        image, loss, dim: See :func:`reference_gradients`.
        network: Gradients of the network by parameter name, on the CPU.
        centre_CD: Gradient of the centres.
    """

    image: torch.Tensor
    loss: MarginLoss
    dim: int
    network: Mapping[str, torch.Tensor]
    centre_CD: torch.Tensor


def reference_gradients(
    model: nn.Module, precision: Precision, loss: MarginLoss, dim: int, image: torch.Tensor, comm: Comm
) -> ReferenceGradients | None:
    """Return the gradients that an engine must compute on a random batch; None for one rank, which needs no check.

    Collective: every rank must call it, before an engine wraps the network. Weights and buffers do not change.

    Args:
        model: The bare network, on the training device.
        precision: Precision of the engine.
        loss: The loss of the training.
        dim: D.
        image: One input (1, ...), with dtype and device of the training; only its shape matters.
        comm: The ranks, in the group of the loss.
    """
    if comm.topology.world_size == 1:
        return None
    batch, sizes = _tiny_batch(image, comm)
    centres = Centres(_classes(comm), dim, CHECK_SEED)
    global_loss = DistributedLoss(centres, loss, SoloComm(comm.device)).to_training_dtype(image.dtype)
    torch.manual_seed(CHECK_SEED)
    with preserve_buffers(model):
        own_BD = forward_embeddings(model, batch.image, precision)
    emb_ND = comm.all_gather_rows(own_BD.detach().float().to(centres.weight), sizes).requires_grad_()
    mean = global_loss(emb_ND, comm.all_gather_rows(batch.label, sizes), step=CHECK_STEP, count=sum(sizes))
    centre_CD, emb_grad_ND = torch.autograd.grad(mean, (centres.weight, emb_ND))
    emb_grad_BD = emb_grad_ND.split(sizes)[comm.topology.rank].to(own_BD)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(own_BD, list(trained.values()), emb_grad_BD, allow_unused=True)
    given = {name: grad for name, grad in zip(trained, grads, strict=True) if grad is not None}
    network = {name: comm.all_reduce_sum(grad.contiguous()).cpu() for name, grad in given.items()}
    return ReferenceGradients(image=image, loss=loss, dim=dim, network=network, centre_CD=centre_CD)


def check_gradients(engine: Engine, reference: ReferenceGradients | None, layout: Layout, comm: Comm) -> None:
    """Compare the gradients of the engine and of the centres with the reference, on a batch that is then dropped.

    Collective: every rank must call it. Weights and buffers do not change.

    Args:
        engine: The engine that wraps the network.
        reference: Result of :func:`reference_gradients`.
        layout: Layout of the centres.
        comm: The ranks, in the group of the loss.

    Raises:
        EngineError: The gradients are not those of the global mean.
    """
    if reference is None:
        return
    batch, sizes = _tiny_batch(reference.image, comm)
    rows = comm.topology.rank_range(_classes(comm)) if layout == "sharded" else None
    centres = Centres(_classes(comm), reference.dim, CHECK_SEED, rows)
    trained = DistributedLoss(centres, reference.loss, comm, layout).to_training_dtype(reference.image.dtype)
    torch.manual_seed(CHECK_SEED)
    found = engine.gradients(batch, lambda emb, label: trained(emb, label, step=CHECK_STEP, count=sum(sizes)))
    _compare("the gradients of the engine", found, reference.network, comm)
    own_centres = [("centres", _centre_gradient(trained, comm))]
    _compare("the gradients of the centres", own_centres, {"centres": reference.centre_CD}, comm)


def _classes(comm: Comm) -> int:
    return 2 * comm.topology.world_size + 1


def _tiny_batch(image: torch.Tensor, comm: Comm) -> tuple[Batch, list[int]]:
    """Return the local samples, two on rank 0 and four elsewhere, and the number of samples on each rank."""
    sizes = [2 if rank == 0 else 4 for rank in range(comm.topology.world_size)]
    count = sizes[comm.topology.rank]
    generator = torch.Generator().manual_seed(CHECK_SEED + comm.topology.rank)
    images = torch.randn(count, *image.shape[1:], generator=generator).to(image)
    label = (torch.arange(count) + comm.topology.rank).to(image.device)
    return Batch(image=images, label=label, keys=("",) * count), sizes


def _centre_gradient(trained: DistributedLoss, comm: Comm) -> torch.Tensor:
    grad = trained.centres.weight.grad
    if grad is None:
        raise EngineError("the loss computed no gradient for the centres")
    if trained.layout == "sharded":
        return comm.all_gather_rows(grad)
    return comm.all_reduce_sum(grad) / comm.topology.world_size


def _compare(
    what: str, found: Iterable[tuple[str, torch.Tensor]], expected: Mapping[str, torch.Tensor], comm: Comm
) -> None:
    """Raise on all ranks if the gradients together differ by more than rounding.

    ``found`` is consumed one tensor at a time, because all of them at once would need more memory than the training.
    """
    difference, length, product = 0.0, 0.0, 0.0
    remaining = dict(expected)
    for name, grad in found:
        other = remaining.pop(name, None)
        if other is not None:
            one, other = grad.cpu().double().flatten(), other.cpu().double().flatten()
            difference, length = difference + float((one - other).square().sum()), length + float(other @ other)
            product += float(one @ other)
    missed = sum(float(other.double().square().sum()) for other in remaining.values())
    difference, length = difference + missed, length + missed
    error = math.sqrt(difference / length) if length else 0.0
    errors = comm.all_gather_json(error)
    if all(one <= MAX_RELATIVE_ERROR for one in errors):
        return
    if not all(map(math.isfinite, errors)):
        raise EngineError(f"{what} on random samples are not finite: the scale or margin of the loss is too large")
    factor = product / length
    raise EngineError(
        f"{what} over {comm.topology.world_size} ranks are not those of the mean over the global batch: "
        f"relative error {max(errors):.2g}, {factor:.3g} times the expected length; nothing was trained"
    )
