"""Rank script: loss modules inside and outside of a model that DistributedDataParallel wraps."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from rank_script import with_comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.losses import modules
from hsadml_dist.losses.modules import MarginLossModule, exclude_sharded_centres

CLASSES = {kind.name: kind for kind in MarginLossModule.__subclasses__()}


class Backbone(nn.Module):
    """A linear map, optionally followed by the loss."""

    def __init__(self, weight: torch.Tensor, loss: MarginLossModule | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.loss = loss

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return embeddings, or with a loss its value."""
        emb = x @ self.weight
        return emb if self.loss is None else self.loss(emb, label)


def body(comm: Comm, case: str) -> Any:
    """Return loss and gradients of each job in the file ``case``, and which errors are raised."""
    torch.set_num_threads(1)
    inputs = torch.load(case, weights_only=False)
    answers = [run(comm, job, inputs) for job in inputs["jobs"]]
    return {"answers": answers, "initialised": dist.is_initialized()}


def run(comm: Comm, job: Any, inputs: Any) -> dict[str, torch.Tensor]:
    """Return the loss and the gradients after the averaging by DistributedDataParallel."""
    loss = build_loss(job, inputs)
    inside = job.place == "inside"
    model: nn.Module = Backbone(inputs["backbone"], loss if inside else None)
    exclude_sharded_centres(model)
    backbone = model.weight
    if comm.topology.world_size > 1:
        model = DistributedDataParallel(model)
    start = sum(job.shares[: comm.topology.rank])
    part = slice(start, start + job.shares[comm.topology.rank])
    output = model(inputs["x"][part], inputs["label"][part])
    value = output if inside else loss(output, inputs["label"][part])
    value.backward()
    answer = {"loss": value.detach(), "backbone": backbone.grad, "centres": loss.loss.centres.weight.grad}
    if loss.loss.bias is not None:
        answer["bias"] = loss.loss.bias.grad
    answer["step"] = loss.state_dict()["step"]
    answer["all centres"] = loss.gather_centres().clone()
    return answer


def build_loss(job: Any, inputs: Any) -> MarginLossModule:
    """Return the loss in fp64, with step and statistics loaded from a state dict."""
    name, settings = job.settings
    options = {"layout": job.layout, "seed": inputs["seed"]}
    loss = getattr(modules, CLASSES[name].__name__)(
        inputs["classes"], inputs["backbone"].shape[1], settings=settings, **options
    )
    state = loss.state_dict() | {"step": torch.tensor(inputs["step"] - 1)}
    if loss.loss.norms is not None:
        state["loss.norms.mean"], state["loss.norms.deviation"] = (torch.tensor(norm) for norm in inputs["norms"])
    loss.load_state_dict(state)
    return loss.double()


if __name__ == "__main__":
    with_comm(body)
