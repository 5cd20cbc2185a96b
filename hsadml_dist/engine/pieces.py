"""What a rank holds under ZeRO: pieces of parameters inside flat fp32 tensors, and whole tensors put together of them.

::

    parameter a (flattened)  parameter b          rank 0 holds the first half of the row, rank 1 the second
    [..........][..................]
    |--- rank 0 ---|--- rank 1 ---|               b's piece on rank 0: start 0; on rank 1: start 4

Weights, moments and averages all lie in flat tensors of the same layout, so one list of pieces serves them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from hsadml_dist.comm import Comm


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatFragment:
    """This rank's part of one parameter.

    Attributes:
        name: The parameter.
        shape: The whole parameter's shape.
        start: Where in the flattened parameter the piece begins.
        count: Its elements; may be 0.
        flat: The flat tensor of weights that holds it.
        offset: Where in ``flat`` it begins.
    """

    name: str
    shape: torch.Size
    start: int
    count: int
    flat: torch.Tensor
    offset: int

    def of(self, alike: torch.Tensor) -> torch.Tensor:
        """Return the piece as a view (count,) of ``flat`` or of a tensor of its layout."""
        return alike.narrow(0, self.offset, self.count)

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the piece (count,) of a whole tensor of the parameter's shape."""
        return whole.flatten().narrow(0, self.start, self.count)


def gather_full_tensors(
    shapes: Mapping[str, torch.Size],
    parts: Mapping[str, tuple[FlatFragment, torch.Tensor]],
    comm: Comm,
    *,
    keep: bool = True,
) -> dict[str, torch.Tensor]:
    """Put whole tensors together of all ranks' parts, bit for bit; to be called by all ranks.

    Args:
        shapes: The parameters to put together, in the same order on all ranks.
        parts: This rank's piece and its values (count,), fp32, by parameter.
        comm: The ranks.
        keep: Whether this rank wants the result; without it an empty mapping is returned.

    Returns:
        fp32 tensors on the CPU.
    """
    whole = {}
    for name, shape in shapes.items():
        # Whole numbers: sums of floating-point numbers would turn a negative zero into a positive one.
        bits = torch.zeros(shape.numel(), dtype=torch.int32, device=comm.device)
        if name in parts:
            piece, values = parts[name]
            bits.narrow(0, piece.start, piece.count).copy_(values.detach().contiguous().view(torch.int32))
        comm.all_reduce_sum(bits)
        if keep:
            whole[name] = bits.cpu().view(torch.float32).view(shape)
    return whole


def squared_norm(values: Iterable[torch.Tensor], comm: Comm) -> torch.Tensor:
    """Return the sum of squares over all ranks' pieces, a scalar; to be called by all ranks."""
    squares = [value.float().square().sum().to(comm.device) for value in values]
    return comm.all_reduce_sum(torch.stack(squares).sum() if squares else torch.zeros((), device=comm.device))
