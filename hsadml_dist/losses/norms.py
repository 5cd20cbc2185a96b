"""Running statistics of the embeddings' lengths over the global batches, from which AdaFace reads quality.

Legend of shapes: N compared samples.
"""

from __future__ import annotations

import torch
from torch import nn

from hsadml_dist.comm import Comm
from hsadml_dist.losses.margins import AdaptiveNorm

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
