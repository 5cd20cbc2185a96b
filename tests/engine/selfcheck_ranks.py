"""The question at the start, asked of a right engine and of wrong ones."""

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


class AddsUp(DdpEngine):
    """Adds the ranks' gradients where it should average them."""

    def gradients(self, part: Any, loss_fn: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield gradients that are as many times too long as there are ranks."""
        yield from ((name, grad * 2) for name, grad in super().gradients(part, loss_fn))


class MeanOfMeans(DdpEngine):
    """Averages the ranks' own means, whatever their numbers of samples."""

    def gradients(self, part: Any, loss_fn: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the gradient of the wrong mean."""
        return super().gradients(part, lambda emb, label: loss_fn(emb * 1.0, label) * (3 / len(label)))


class Alone(DdpEngine):
    """Forgets to reduce."""

    def gradients(self, part: Any, loss_fn: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield this rank's own gradient."""
        loss_fn(self.embed(part.image), part.label).backward()
        yield from ((name, p.grad.clone()) for name, p in self.model.named_parameters() if p.grad is not None)
        self.model.zero_grad()


class Forgets(DdpEngine):
    """Leaves out one parameter."""

    def gradients(self, part: Any, loss_fn: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all gradients but the largest parameter's."""
        yield from ((name, grad) for name, grad in super().gradients(part, loss_fn) if name != "3.weight")


def body(comm: Comm, case: str) -> dict[str, Any]:
    """Return what each kind of engine is results, and whether its weights and buffers stayed as they were."""
    results = {}
    for precision in ("fp32", "bf16", "fp64"):
        for layout in ("replicated", "sharded"):
            for name in LOSSES:
                results[f"right {precision} {layout} {name}"] = _check(comm, DdpEngine, layout, name, precision)
    for wrong in (AddsUp, MeanOfMeans, Alone, Forgets):
        results[wrong.__name__] = _check(comm, wrong, "replicated", "softmax", "fp32")
    results["centres"] = _with_wrong_centres(comm)
    results["too much"] = _check(comm, DdpEngine, "replicated", "cosface", "fp32", scale=3e38)
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
    return "right" if same and all(p.grad is None for p in model.parameters()) else "changed"


class WrongCentres(DistributedLoss):
    """Scales the gradient of sharded centres by the number of ranks."""

    def __init__(self, centres: Centres, loss: MarginLoss, comm: Comm, layout: Layout = "replicated") -> None:
        super().__init__(centres, loss, comm, layout)
        if layout == "sharded":
            self.centres.weight.register_hook(lambda grad: grad * comm.topology.world_size)


def _with_wrong_centres(comm: Comm) -> str:
    selfcheck.DistributedLoss = WrongCentres  # type: ignore[misc]
    try:
        return _check(comm, DdpEngine, "sharded", "softmax", "fp32")
    finally:
        selfcheck.DistributedLoss = DistributedLoss  # type: ignore[misc]


if __name__ == "__main__":
    with_comm(body)
