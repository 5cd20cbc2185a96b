"""A network's forward pass as every engine does it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from hsadml_dist.models.network import Precision


def forward_embeddings(network: nn.Module, image: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return the embeddings (B, D) of images (B, C, H, W[, D]); bf16 means autocast."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(image)


class BufferSnapshot:
    """A model's buffers, and what they were when they were last noted."""

    def __init__(self, model: nn.Module) -> None:
        # Their data alone: what autograd keeps of a pass counts as unchanged when they are put back.
        self._now = [buffer.data for buffer in model.buffers()]
        self._noted = [buffer.clone() for buffer in self._now]

    def note(self) -> None:
        """Remember what they are."""
        self._copy(self._now, self._noted)

    def put_back(self) -> None:
        """Make them what they were."""
        self._copy(self._noted, self._now)

    @staticmethod
    def _copy(source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
        if source:  # one call: on a GPU, a call a buffer would take longer than a small net's step
            torch._foreach_copy_(target, source)


@contextlib.contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back to what they were before: nothing is learnt from what is done meanwhile."""
    buffers = BufferSnapshot(model)
    yield
    buffers.put_back()
