"""Rank script: the gradient check on correct and incorrect engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from rank_script import with_comm
from torch import nn

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine import selfcheck
from hsadml_dist.engine.ddp import DdpEngine
from hsadml_dist.errors import EngineError
from hsadml_dist.losses.centres import Centres, Layout
from hsadml_dist.losses.distributed_loss import DistributedLoss
from hsadml_dist.losses.margins import LOSSES, MarginLoss, MarginSettings, build_margin

DIM = 4


class SumsGradients(DdpEngine):
    """Sums the gradients of the ranks instead of averaging them."""

    def gradients(self, part: Any, loss_fn: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield gradients that are too long by a factor."""
        yield from ((name, grad * 2) for name, grad in super().gradients(part, loss_fn))


class MeanOfMeans(DdpEngine):
    """Averages the means of the ranks regardless of their numbers of samples."""

    def gradients(self, part: Any, loss_fn: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the gradient of the mean of means."""
        return super().gradients(part, lambda emb, label: loss_fn(emb * 1.0, label) * (3 / len(label)))


class LocalGradients(DdpEngine):
    """Does not reduce gradients over the ranks."""

    def gradients(self, part: Any, loss_fn: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the local gradient."""
        loss_fn(self.embed(part.image), part.label).backward()
        yield from ((name, p.grad.clone()) for name, p in self.model.named_parameters() if p.grad is not None)
        self.model.zero_grad()


class OmitsParameter(DdpEngine):
    """Omits one parameter."""

    def gradients(self, part: Any, loss_fn: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all gradients except that of the largest parameter."""
        yield from ((name, grad) for name, grad in super().gradients(part, loss_fn) if name != "3.weight")


def body(comm: Comm, case: str) -> dict[str, Any]:
    """Return the result of the check for each engine: an error, or whether weights and buffers are unchanged."""
    results = {}
    for precision in ("fp32", "bf16", "fp64"):
        for layout in ("replicated", "sharded"):
            for name in LOSSES:
                results[f"correct {precision} {layout} {name}"] = _check(comm, DdpEngine, layout, name, precision)
    for incorrect in (SumsGradients, MeanOfMeans, LocalGradients, OmitsParameter):
        results[incorrect.__name__] = _check(comm, incorrect, "replicated", "softmax", "fp32")
    results["centres"] = _check_wrong_centres(comm)
    results["overflow"] = _check(comm, DdpEngine, "replicated", "cosface", "fp32", scale=3e38)
    return results


def _check(
    comm: Comm, kind: type[DdpEngine], layout: Any, name: str, precision: Any, scale: float | None = None
) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 16, DIM), nn.Dropout(0.3))
    dtype = torch.float64 if precision == "fp64" else torch.float32
    image = torch.zeros(1, 1, 6, 6, dtype=dtype)
    model.to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss_comm, margin = comm.new_train_group(), build_margin(name, MarginSettings(scale=scale))
    reference = selfcheck.reference_gradients(model, precision, margin, DIM, image, loss_comm)
    engine = kind(model, torch.optim.SGD(model.parameters(), lr=0.1), comm, precision, image)
    try:
        selfcheck.check_gradients(engine, reference, layout, loss_comm)
    except EngineError as fault:
        return str(fault)
    same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return "unchanged" if same and all(p.grad is None for p in model.parameters()) else "changed"


class WrongCentres(DistributedLoss):
    """Scales the gradient of sharded centres by the number of ranks."""

    def __init__(self, centres: Centres, loss: MarginLoss, comm: Comm, layout: Layout = "replicated") -> None:
        super().__init__(centres, loss, comm, layout)
        if layout == "sharded":
            self.centres.weight.register_hook(lambda grad: grad * comm.topology.world_size)


def _check_wrong_centres(comm: Comm) -> str:
    selfcheck.DistributedLoss = WrongCentres  # type: ignore[misc]
    try:
        return _check(comm, DdpEngine, "sharded", "softmax", "fp32")
    finally:
        selfcheck.DistributedLoss = DistributedLoss  # type: ignore[misc]


if __name__ == "__main__":
    with_comm(body)
