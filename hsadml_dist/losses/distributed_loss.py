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
from typing import Literal

import torch
from torch import nn

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.losses.blocks import SampledRows, sample_rows
from hsadml_dist.losses.centres import Centres, Layout, at_least_fp32
from hsadml_dist.losses.exchange import Exchange, GatherExchange, LocalExchange
from hsadml_dist.losses.global_loss import StepPlan, global_loss
from hsadml_dist.losses.margins import AdaptiveNorm, MarginLoss

MIN_NORM, MAX_NORM = 0.001, 100.0
"""Lengths are cut off at these, as in the authors' released code."""


class EmbeddingNormStatistics(nn.Module):
    """Mean and deviation of the lengths, moved once a step by the whole step's batch.

    A step is judged by the statistics of the steps before it. The authors let the batch in hand count with its own
    1 %; here it counts from the next step on, so that neither the number of ranks nor that of the parts of a batch
    changes anything. Source: Kim et al., CVPR 2022, equation 13 and section 3.3; starting values as released.

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
        self._seen = torch.zeros(3, dtype=torch.float64)

    def qualities(self, norm_N: torch.Tensor) -> torch.Tensor:
        """Return the samples' qualities (N,), in [-1, 1], for lengths (N,)."""
        spread = (self.deviation / self._settings.concentration).clamp(min=MIN_NORM)
        return ((_cut(norm_N).double() - self.mean) / spread).clamp(-1, 1).to(norm_N.dtype)

    def see(self, norm_B: torch.Tensor) -> None:
        """Take note of this rank's samples of the step in hand."""
        norm_B = _cut(norm_B.detach().double())
        sums = torch.stack([norm_B.new_tensor(len(norm_B)), norm_B.sum(), norm_B.square().sum()])
        self._seen = self._seen.to(sums.device) + sums

    def forget(self) -> None:
        """Let go of what was seen of the step in hand."""
        self._seen = torch.zeros_like(self._seen)

    def move(self, comm: Comm) -> None:
        """End the step: move the statistics towards those of all that the ranks have seen in it."""
        count, total, squares = comm.all_reduce_sum(self._seen.to(self.mean.device)).unbind()
        self.forget()
        if count < 2:
            return
        mean = total / count
        deviation = ((squares - count * mean**2) / (count - 1)).clamp(min=0).sqrt()
        self.mean.lerp_(mean, self._settings.momentum)
        self.deviation.lerp_(deviation, self._settings.momentum)


def _cut(norm_N: torch.Tensor) -> torch.Tensor:
    return norm_N.clamp(MIN_NORM, MAX_NORM)


MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class LossCompute:
    """How the loss is computed; nothing here but the sampling changes what is computed.

    Attributes:
        backward: store: keep all cosines for the backward pass; stream: compute them twice; auto: keep what fits.
        memory_mib: What ``auto`` may keep, in MiB.
        block: Classes compared at a time.
        sample_rate: Share of the classes that a step compares with.
        seed: The run's seed, for the sampling.
    """

    backward: Literal["auto", "store", "stream"] = "auto"
    memory_mib: float = 1024.0
    block: int = 512
    sample_rate: float = 1.0
    seed: int = 0


class DistributedLoss(nn.Module):
    """Margin loss of the global batch.

    Attributes:
        centres: The class centres of this rank, trained by an optimiser of their own.
        bias: Parameter () of losses that have one, alike on all ranks; else None.
        norms: Statistics of adaptive losses, alike on all ranks; else None.
        layout: Who holds the centres.
    """

    def __init__(
        self,
        centres: Centres,
        loss: MarginLoss,
        comm: Comm,
        layout: Layout = "replicated",
        computing: LossCompute | None = None,
    ) -> None:
        super().__init__()
        self.centres = centres
        self.layout = layout
        self._loss, self._comm, self._computing = loss, comm, computing or LossCompute()
        start = loss.reducer.initial_bias(centres.classes)
        self.bias = None if start is None else nn.Parameter(torch.tensor(start))
        self.norms = None if loss.adaptive is None else EmbeddingNormStatistics(loss.adaptive)

    def forward(self, emb_BD: torch.Tensor, label_B: torch.Tensor, *, step: int, count: int) -> torch.Tensor:
        """Return this rank's share of the mean loss; with sharded centres all ranks must call it together.

        Args:
            emb_BD: Embeddings (B, D), any float dtype; halves are raised to fp32, fp64 stays. B may be 0.
            label_B: Class ids (B,), int64, in [0, C).
            step: The run's global step, from 1; drives annealing and sampling.
            count: The number of samples of the whole step over all ranks.

        Returns:
            Scalar: ``W / count * sum of local losses``. Its average over ranks is the global mean.
        """
        emb_BD = at_least_fp32(emb_BD)
        if self.norms is not None and emb_BD.requires_grad:
            self.norms.see(torch.linalg.vector_norm(emb_BD, dim=1))
        return global_loss(emb_BD, self.centres.weight, self.bias, label_B, self._plan(len(label_B), step, count))

    def placed(self, dtype: torch.dtype) -> DistributedLoss:
        """Move to the ranks' device, parameters in ``dtype``; statistics stay fp64. Returns itself."""
        self.to(self._comm.device)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        return self

    def end_step(self) -> None:
        """Move what is learnt of a whole step's batch; called by all ranks after the last part of a step."""
        if self.norms is not None:
            self.norms.move(self._comm)

    def forget_step(self) -> None:
        """Let go of what was noted of the step in hand, which counts for nothing."""
        if self.norms is not None:
            self.norms.forget()

    def _plan(self, local: int, step: int, count: int) -> StepPlan:
        world, sharded = self._comm.topology.world_size, self.layout == "sharded"
        exchange: Exchange = GatherExchange(self._comm) if sharded else LocalExchange()
        return StepPlan(
            margin=self._loss.at(step),
            reducer=self._loss.reducer,
            quality=self._qualities,
            exchange=exchange,
            first=self.centres.rows.start,
            choose=lambda label_N: self._chosen(label_N, step),
            share=world / count,
            centre_share=(1 if sharded else world) / count,
            store=self._stores(local * (world if sharded else 1)),
            block=self._computing.block,
        )

    def _qualities(self, norm_N: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(norm_N) if self.norms is None else self.norms.qualities(norm_N)

    def _chosen(self, label_N: torch.Tensor, step: int) -> SampledRows | None:
        chosen = self._computing
        if chosen.sample_rate >= 1:
            return None
        return sample_rows(self.centres.rows, label_N, rate=chosen.sample_rate, seed=chosen.seed, step=step)

    def _stores(self, compared: int) -> bool:
        if self._computing.backward != "auto":
            return self._computing.backward == "store"
        size = compared * len(self.centres.rows) * self.centres.weight.element_size()
        return size <= self._computing.memory_mib * MEBIBYTE
