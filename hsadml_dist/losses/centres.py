"""Class centres: the weights that the embeddings are compared with.

Legend of shapes: C classes, D embedding components.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn


class ReplicatedCentres(nn.Module):
    """All C centres on every rank; right where there are few classes.

    Attributes:
        weight: Parameter (C, D); only the rows' directions matter to the losses.
    """

    def __init__(self, classes: int, dim: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial_rows(range(classes), dim, seed))

    def forward(self) -> torch.Tensor:
        """Return the unit centres (C, D), at least in fp32."""
        return nn.functional.normalize(at_least_fp32(self.weight), dim=1)


def initial_rows(classes: range, dim: int, seed: int) -> torch.Tensor:
    """Return unit rows (len(classes), D), fp32; a row depends on (seed, class id) only, so never on the layout."""
    rows = [torch.randn(dim, generator=_generator(seed, class_id)) for class_id in classes]
    return nn.functional.normalize(torch.stack(rows), dim=1) if rows else torch.empty(0, dim)


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Return halves as fp32; fp32 and fp64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _generator(seed: int, class_id: int) -> torch.Generator:
    # The generator keeps 32 bits of its seed: from a start of the run's own, classes count up, so no two are the same.
    start = int.from_bytes(hashlib.blake2b(f"centres {seed}".encode(), digest_size=4).digest(), "little")
    return torch.Generator().manual_seed((start + class_id) % 2**32)
