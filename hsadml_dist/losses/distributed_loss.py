"""Margin loss over the global batch, with replicated or sharded class centres.

Each rank returns its share of the global mean, scaled so that the average over ranks, which data-parallel engines take
of all gradients, is the gradient of that mean, even if ranks hold different numbers of samples or none.

Replicated centres: each rank compares its own samples with all centres; the gradients of the centres are averaged like
those of the backbone. Sharded centres: each rank compares the samples of all ranks with its own rows; the gradients of
these rows are complete and are not reduced.

Legend of shapes: B local samples, N compared samples, W ranks, D embedding components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hsadml_dist.distributed.comm import Comm, SoloComm
from hsadml_dist.errors import ConfigError, Fault
from hsadml_dist.loss_rules import sample_rate_problem
from hsadml_dist.losses.centres import Centres, Layout, SampledRows, at_least_fp32, sample_rows
from hsadml_dist.losses.global_loss import StepPlan, global_loss
from hsadml_dist.losses.margins import AdaptiveNorm, MarginLoss
from hsadml_dist.losses.reducers import Exchange

MEBIBYTE = 2**20

MIN_NORM, MAX_NORM = 0.001, 100.0
"""Embedding norms are clamped to this range, as in the released code of AdaFace."""


class EmbeddingNormStatistics(nn.Module):
    """Running mean and standard deviation of the embedding norms, from which AdaFace computes sample quality.

    They are updated once per step, by the global batch, and a step uses the statistics of the steps before it. The
    authors include the current batch with its weight of 1 %; here it counts from the next step on, so that results
    depend neither on the number of ranks nor on the number of micro-batches. Source: Kim et al., CVPR 2022, equation 13
    and section 3.3; initial values as released.

    Attributes:
        mean: Scalar, fp64.
        deviation: Scalar, fp64.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, settings: AdaptiveNorm) -> None:
        super().__init__()
        self._settings = settings
        self.register_buffer("mean", torch.tensor(20.0, dtype=torch.float64))
        self.register_buffer("deviation", torch.tensor(100.0, dtype=torch.float64))
        self._sums = torch.zeros(3, dtype=torch.float64)

    def qualities(self, norm_N: torch.Tensor) -> torch.Tensor:
        """Return the sample qualities (N,), in [-1, 1], for embedding norms (N,)."""
        spread = (self.deviation / self._settings.concentration).clamp(min=MIN_NORM)
        return ((_clamp(norm_N).double() - self.mean) / spread).clamp(-1, 1).to(norm_N.dtype)

    def accumulate(self, norm_B: torch.Tensor) -> None:
        """Add the norms of local samples to the sums of the current step."""
        norm_B = _clamp(norm_B.detach().double())
        sums = torch.stack([norm_B.new_tensor(len(norm_B)), norm_B.sum(), norm_B.square().sum()])
        self._sums = self._sums.to(sums.device) + sums

    def discard(self) -> None:
        self._sums = torch.zeros_like(self._sums)

    def update(self, comm: Comm) -> None:
        """End the step: move the statistics towards those of the global batch. Collective: every rank must call it."""
        count, total, squares = comm.all_reduce_sum(self._sums.to(self.mean.device)).unbind()
        self.discard()
        mean = total / count
        deviation = ((squares - count * mean**2) / (count - 1)).clamp(min=0).sqrt()
        for old, new in ((self.mean, mean), (self.deviation, deviation)):
            # A choice on the device, because a branch would wait for it. One sample has no deviation.
            old.copy_(torch.where(count < 2, old, old.lerp(new, self._settings.momentum)))


def _clamp(norm_N: torch.Tensor) -> torch.Tensor:
    return norm_N.clamp(MIN_NORM, MAX_NORM)


@dataclass(frozen=True, kw_only=True)
class LossCompute:
    """How to compute the loss; only class sampling changes its value.

    Attributes:
        backward: store: keep all cosines for the backward pass; stream: compute them twice; auto: store if they fit.
        memory_mib: Memory for the cosines under ``auto``, in MiB.
        block: Number of classes compared at a time.
        sample_rate: Share of the classes that a step compares with.
        seed: Seed of the run, for class sampling.
    """

    backward: Literal["auto", "store", "stream"] = "auto"
    memory_mib: float = 1024.0
    block: int = 512
    sample_rate: float = 1.0
    seed: int = 0


class DistributedLoss(nn.Module):
    """Margin loss of the global batch.

    Attributes:
        centres: The local class centres, trained by their own optimizer.
        bias: Parameter () of losses that have one, equal on all ranks.
        norms: Statistics of adaptive losses, equal on all ranks.
        layout: Layout of the centres.
        comm: The ranks.
    """

    def __init__(
        self,
        centres: Centres,
        loss: MarginLoss,
        comm: Comm,
        layout: Layout = "replicated",
        compute: LossCompute | None = None,
    ) -> None:
        """Create the loss.

        Raises:
            ConfigError: The sample rate is so low that steps would compare with no class.
        """
        super().__init__()
        self.centres, self.layout = centres, layout
        self._loss, self.comm, self._compute = loss, comm, compute or LossCompute()
        problem = sample_rate_problem(self._compute.sample_rate, centres.classes)
        if problem is not None:
            raise ConfigError([Fault(where="recipe", key="loss.sample_rate", problem=problem)])
        start = loss.reducer.initial_bias(centres.classes)
        self.bias = None if start is None else nn.Parameter(torch.tensor(start))
        self.norms = None if loss.adaptive is None else EmbeddingNormStatistics(loss.adaptive)

    def forward(
        self, emb_BD: torch.Tensor, label_B: torch.Tensor, *, step: int, count: int, average_gradients: bool = False
    ) -> torch.Tensor:
        """Return the local share of the mean loss. Collective if the centres are sharded: every rank must call it.

        Args:
            emb_BD: Embeddings (B, D), any floating dtype; half precision is raised to fp32. B may be 0.
            label_B: Class ids (B,), int64, in [0, C).
            step: Global step of the run, from 1; determines annealing and sampling.
            count: Number of samples of the whole step over all ranks.
            average_gradients: Average the gradients of replicated parameters over the ranks in the backward pass, which
                is then collective; otherwise the caller averages them.

        Returns:
            Scalar: ``W / count * sum of local losses``. Its average over the ranks is the global mean.
        """
        emb_BD = at_least_fp32(emb_BD)
        if self.norms is not None and emb_BD.requires_grad:
            self.norms.accumulate(torch.linalg.vector_norm(emb_BD, dim=1))
        weight_CD, bias = self.centres.weight, self.bias
        if average_gradients and self.comm.topology.world_size > 1:
            weight_CD = weight_CD if self.layout == "sharded" else _AverageGradient.apply(weight_CD, self.comm)
            bias = None if bias is None else _AverageGradient.apply(bias, self.comm)
        return global_loss(emb_BD, weight_CD, bias, label_B, self._plan(len(label_B), step, count))

    def to_training_dtype(self, dtype: torch.dtype) -> DistributedLoss:
        """Move the loss to the device of the ranks and its parameters to ``dtype``, and return it.

        Statistics stay fp64.
        """
        self.to(self.comm.device)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        return self

    def end_step(self) -> None:
        """Update the statistics after the last micro-batch of a step. Collective: every rank must call it."""
        if self.norms is not None:
            self.norms.update(self.comm)

    def discard_step(self) -> None:
        """Drop what was accumulated for the statistics in the current step."""
        if self.norms is not None:
            self.norms.discard()

    def _plan(self, local: int, step: int, count: int) -> StepPlan:
        world, sharded = self.comm.topology.world_size, self.layout == "sharded"
        return StepPlan(
            margin=self._loss.at(step),
            reducer=self._loss.reducer,
            quality=torch.zeros_like if self.norms is None else self.norms.qualities,
            exchange=Exchange(self.comm if sharded else SoloComm(self.comm.device)),
            first_class=self.centres.rows.start,
            sample=lambda label_N: self._sample(label_N, step),
            share=world / count,
            centre_share=(1 if sharded else world) / count,
            store=self._stores(local * (world if sharded else 1)),
            block=self._compute.block,
        )

    def _sample(self, label_N: torch.Tensor, step: int) -> SampledRows | None:
        compute = self._compute
        if compute.sample_rate >= 1:
            return None
        return sample_rows(self.centres.rows, label_N, rate=compute.sample_rate, seed=compute.seed, step=step)

    def _stores(self, compared: int) -> bool:
        if self._compute.backward != "auto":
            return self._compute.backward == "store"
        size = compared * len(self.centres.rows) * self.centres.weight.element_size()
        return size <= self._compute.memory_mib * MEBIBYTE


class _AverageGradient(torch.autograd.Function):
    """The identity, whose gradient is averaged over the ranks."""

    @staticmethod
    def forward(ctx: Any, parameter: torch.Tensor, comm: Comm) -> torch.Tensor:
        ctx.comm = comm
        return parameter.view_as(parameter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.comm.all_reduce_sum(grads[0].clone()) / ctx.comm.topology.world_size, None
