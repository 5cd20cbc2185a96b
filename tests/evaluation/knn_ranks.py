"""Search neighbours on one rank, with uneven parts of the rows; of several ranks the last holds no gallery rows."""

from __future__ import annotations

from typing import Any

import torch
from rank_script import with_comm

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.evaluation.knn import nearest_distributed


def search(comm: Comm, rows: str) -> dict[str, Any]:
    """Search among the rows stored in a file."""
    rank, world = comm.topology.rank, comm.topology.world_size
    stored = torch.load(rows)
    queries = stored["queries"][slice_of(len(stored["queries"]), rank, world)]
    holders = max(1, world - 1)
    gallery = stored["gallery"][slice_of(len(stored["gallery"]), rank, holders) if rank < holders else slice(0)]
    cosines, positions = nearest_distributed(queries, gallery, comm, k=4, block=10)
    return {"cosines": cosines.tolist(), "positions": positions.tolist()}


def slice_of(count: int, index: int, parts: int) -> slice:
    """Return the slice of part ``index`` of an uneven split: part i gets i + 1 shares."""
    shares = parts * (parts + 1) // 2
    return slice(count * (index * (index + 1) // 2) // shares, count * ((index + 1) * (index + 2) // 2) // shares)


if __name__ == "__main__":
    with_comm(search)
