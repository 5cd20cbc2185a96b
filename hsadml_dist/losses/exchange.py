"""What a loss exchanges with other ranks: nothing where centres are replicated, gathered samples where sharded.

Legend of shapes: B local samples, N samples over all ranks, D embedding components.
"""

from __future__ import annotations

from typing import Protocol

import torch

from hsadml_dist.distributed.comm import Comm


class Exchange(Protocol):
    """The messages of one loss; every method is called by all ranks in the same order."""

    def gather(self, emb_BD: torch.Tensor, label_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings (N, D) and labels (N,) that this rank's centres are compared with."""
        ...

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add over the ranks, in place."""
        ...

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the largest over the ranks, in place."""
        ...

    def own(self, rows_N: torch.Tensor) -> torch.Tensor:
        """Return this rank's samples (B, ...) of rows that all ranks hold alike."""
        ...

    def own_total(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Return this rank's samples (B, D) of rows that are added over the ranks."""
        ...


class LocalExchange:
    """Every rank has all centres and compares its own samples with them: B = N, and nothing travels."""

    def gather(self, emb_BD: torch.Tensor, label_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Exchange`."""
        return emb_BD, label_B

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Exchange`."""
        return tensor

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Exchange`."""
        return tensor

    def own(self, rows_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Exchange`."""
        return rows_N

    def own_total(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """See :class:`Exchange`."""
        return rows_ND


class GatherExchange:
    """Every rank has some centres and compares the samples of all ranks with them; made anew for each loss."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._sizes: list[int] = []

    def gather(self, emb_BD: torch.Tensor, label_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Exchange`."""
        self._sizes = self._comm.all_gather_sizes(len(label_B))
        return self._comm.all_gather_rows(emb_BD, self._sizes), self._comm.all_gather_rows(label_B, self._sizes)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Exchange`."""
        return self._comm.all_reduce_sum(tensor)

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Exchange`."""
        return self._comm.all_reduce_max_tensor(tensor)

    def own(self, rows_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Exchange`."""
        return rows_N.split(self._sizes)[self._comm.topology.rank]

    def own_total(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """See :class:`Exchange`."""
        return self._comm.reduce_scatter_rows(rows_ND, self._sizes)
