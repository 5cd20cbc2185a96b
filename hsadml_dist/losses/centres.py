"""Class centres: the weights that the embeddings are compared with.

Legend of shapes: C classes, K rows that this rank holds, D embedding components.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import nn

Layout = Literal["replicated", "sharded"]


class Centres(nn.Module):
    """The centres of a contiguous range of the classes: of all of them where replicated, of a rank's where sharded.

    Attributes:
        classes: C, the number of all classes.
        rows: Class ids of the rows held here; may be none.
        weight: Parameter (K, D); only the rows' directions matter to the losses.
    """

    def __init__(self, classes: int, dim: int, seed: int, rows: range | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.rows = range(classes) if rows is None else rows
        self.weight = nn.Parameter(initial_rows(self.rows, dim, seed))


def resolve_layout(
    layout: Literal["auto", "replicated", "sharded"], *, classes: int, global_batch: int, world_size: int
) -> Layout:
    """Return the layout that ``auto`` stands for: the one whose messages are smaller.

    Replicated centres reduce a gradient of C * D numbers a step; sharded ones gather and scatter 2 * N * D.
    """
    if layout != "auto":
        return layout
    return "sharded" if world_size > 1 and classes > 2 * global_batch else "replicated"


def initial_rows(classes: range, dim: int, seed: int) -> torch.Tensor:
    """Return unit rows (len(classes), D), fp32; a row depends on (seed, class id) only, so never on the layout."""
    rows = torch.empty(len(classes), dim)
    generator, start = torch.Generator(), _start(seed)
    for row, class_id in zip(rows, classes, strict=True):
        # The generator keeps 32 bits of its seed: from a start of the run's own, classes count up, so no two agree.
        row.normal_(generator=generator.manual_seed((start + class_id) % 2**32))
    return nn.functional.normalize(rows, dim=1, out=rows)


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Return halves as fp32; fp32 and fp64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _start(seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"centres {seed}".encode(), digest_size=4).digest(), "little")
