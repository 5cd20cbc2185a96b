"""A rank's part of a batch: what the loader delivers and the engines consume."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from hsadml_dist.distributed.topology import split_range


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A rank's part of the batch of one step.

    Attributes:
        image: (B, 1, H, W), fp32.
        label: (B,), int64.
        keys: The B sample keys.
    """

    image: torch.Tensor
    label: torch.Tensor
    keys: tuple[str, ...]

    def microbatches(self, count: int) -> list[Batch]:
        """Cut the batch into ``count`` consecutive parts for gradient accumulation; sizes differ by at most one."""
        parts = [split_range(len(self.keys), index, count) for index in range(count)]
        cuts = [slice(part.start, part.stop) for part in parts]
        return [Batch(image=self.image[cut], label=self.label[cut], keys=self.keys[cut]) for cut in cuts]

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a copy to the GPU runs beside the program."""
        return replace(self, image=self.image.pin_memory(), label=self.label.pin_memory())
