"""Implementations of a margin loss that ``benchmarks/loss.py`` compares.

Legend of shapes: N samples, C classes, D embedding components.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import Parameter, functional

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.losses.centres import Centres, initial_rows
from hsadml_dist.losses.distributed_loss import DistributedLoss, LossCompute
from hsadml_dist.losses.margins import Annealing, MarginSettings, build_margin

Answer = dict[str, Any]

SEED = 0
COSFACE_MARGIN, COSFACE_SCALE = 0.35, 64.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A loss problem: mean loss of a batch and gradients of embeddings and centres.

    ``sphereface`` is A-Softmax with m = 4, no annealing, and the embeddings' norms as scale; ``cosface`` has m = 0.35
    and s = 64. Embeddings are normal, centres are unit rows, labels uniform.
    """

    loss: str
    batch: int
    dim: int
    classes: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def samples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (N, D) that require a gradient, and labels (N,)."""
        generator = torch.Generator().manual_seed(SEED)
        emb_ND = torch.randn(self.batch, self.dim, generator=generator)
        label_N = torch.randint(self.classes, (self.batch,), generator=generator)
        return emb_ND.to(self.device, self.dtype).requires_grad_(), label_N.to(self.device)

    def centres(self) -> torch.Tensor:
        """Return the initial centres (C, D) of all implementations."""
        return initial_rows(range(self.classes), self.dim, SEED).to(self.device, self.dtype)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One implementation, ready to run.

    Attributes:
        emb_ND: Its embeddings.
        weight: Its centres: (C, D), or (D, C) where ``columns``.
        loss: Returns the mean loss.
        columns: True if centres are columns.
    """

    emb_ND: torch.Tensor
    weight: Parameter
    loss: Callable[[], torch.Tensor]
    columns: bool = False

    def step(self) -> None:
        """Compute loss and gradients."""
        self.loss().backward()

    def clear(self) -> None:
        """Drop the gradients."""
        self.emb_ND.grad = self.weight.grad = None

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of embeddings (N, D) and centres (C, D)."""
        return self.emb_ND.grad, self.weight.grad.T if self.columns else self.weight.grad


def problem_of(order: Answer, **other: Any) -> Problem:
    """Return the problem of a request."""
    names = ("loss", "batch", "dim", "classes", "device")
    return Problem(**{name: order[name] for name in names} | other)


def say(answer: Answer) -> None:
    """Write a result for the parent process."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def ours(problem: Problem, backward: Literal["store", "stream"], block: int = LossCompute.block) -> Way:
    """This project's loss, with stored or recomputed cosines, of ``block`` classes at a time."""
    emb_ND, label_N = problem.samples()
    centres = Centres(problem.classes, problem.dim, SEED)
    comm = SoloComm(torch.device(problem.device))
    compute = LossCompute(backward=backward, block=block)
    loss = DistributedLoss(centres, our_margin(problem.loss), comm, compute=compute)
    loss.to(problem.device, problem.dtype)
    weight = loss.centres.weight
    return Way(emb_ND=emb_ND, weight=weight, loss=lambda: loss(emb_ND, label_N, step=1, count=problem.batch))


def our_margin(loss: str) -> Any:
    """Return the loss with the settings of the others."""
    if loss == "sphereface":
        return build_margin(loss, MarginSettings(margin=4, annealing=Annealing(base=0, minimum=0)))
    return build_margin(loss, MarginSettings(margin=COSFACE_MARGIN, scale=COSFACE_SCALE))


def metric_learning(problem: Problem) -> Way:
    """pytorch-metric-learning's class of the same name."""
    from pytorch_metric_learning import losses

    emb_ND, label_N = problem.samples()
    if problem.loss == "sphereface":
        loss = losses.SphereFaceLoss(problem.classes, problem.dim, margin=4, scale=1)
    else:
        loss = losses.CosFaceLoss(problem.classes, problem.dim, margin=COSFACE_MARGIN, scale=COSFACE_SCALE)
    loss.W = Parameter(problem.centres().T.contiguous())
    return Way(emb_ND=emb_ND, weight=loss.W, loss=lambda: loss(emb_ND, label_N), columns=True)


def plain_autograd(problem: Problem) -> Way:
    """The formula as one writes it down."""
    emb_ND, label_N = problem.samples()
    weight = Parameter(problem.centres())

    def loss() -> torch.Tensor:
        cos_NC = functional.normalize(emb_ND) @ functional.normalize(weight).T
        target_N1 = cos_NC.gather(1, label_N[:, None])
        if problem.loss == "sphereface":
            psi_N1, scale = _four_fold(target_N1), torch.linalg.vector_norm(emb_ND, dim=1, keepdim=True)
        else:
            psi_N1, scale = target_N1 - COSFACE_MARGIN, torch.tensor(COSFACE_SCALE)
        return functional.cross_entropy(cos_NC.scatter(1, label_N[:, None], psi_N1) * scale, label_N)

    return Way(emb_ND=emb_ND, weight=weight, loss=loss)


def partial_fc_style(problem: Problem) -> Way:
    """CosFace as PartialFC computes it with r = 1: a normalised copy of the centres, one matrix of logits, in place."""
    emb_ND, label_N = problem.samples()
    weight = Parameter(problem.centres())

    def loss() -> torch.Tensor:
        cos_NC = functional.linear(functional.normalize(emb_ND), functional.normalize(weight))
        return _InPlaceCosFace.apply(cos_NC, label_N)

    return Way(emb_ND=emb_ND, weight=weight, loss=loss)


def _four_fold(cos: torch.Tensor) -> torch.Tensor:
    """Return psi for m = 4: a polynomial on each quarter of the angles."""
    sign, tilted = cos.detach().sign(), (2 * cos.detach() ** 2 - 1).sign()
    return sign * tilted * (8 * cos**4 - 8 * cos**2 + 1) + 2 * sign + sign * tilted - 3


class _InPlaceCosFace(torch.autograd.Function):
    """Margin, scale and softmax in the memory of the cosines, which are used up."""

    @staticmethod
    def forward(ctx: Any, cos_NC: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
        each_N = torch.arange(len(label_N), device=label_N.device)
        cos_NC[each_N, label_N] -= COSFACE_MARGIN
        logit_NC = cos_NC.mul_(COSFACE_SCALE)
        share_NC = logit_NC.sub_(logit_NC.amax(dim=1, keepdim=True)).exp_()
        share_NC.div_(share_NC.sum(dim=1, keepdim=True))
        target_N = share_NC[each_N, label_N]
        share_NC[each_N, label_N] -= 1
        ctx.grad_NC = share_NC
        return -target_N.clamp(min=1e-30).log().mean()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.grad_NC.mul_(grads[0] * COSFACE_SCALE / len(ctx.grad_NC)), None


WAYS: dict[str, Callable[[Problem], Way]] = {
    "ours-store": lambda problem: ours(problem, "store"),
    "ours-stream": lambda problem: ours(problem, "stream"),
    "pytorch-metric-learning": metric_learning,
    "plain-autograd": plain_autograd,
    "partial-fc-style": partial_fc_style,
}

LOSSES_OF = {name: ("cosface",) if name == "partial-fc-style" else ("sphereface", "cosface") for name in WAYS}
"""Which losses a way can compute."""
