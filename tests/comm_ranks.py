"""All collectives once, with values from which the test can tell every rank's share."""

from __future__ import annotations

from typing import Any

import torch
from rank_start import with_comm

from hsadml_dist.comm import Comm


def body(comm: Comm, case: str) -> dict[str, Any]:
    """Return what each collective gave this rank."""
    rank = comm.topology.rank
    summed = torch.full((2, 3), 10.0**rank, dtype=torch.float64)
    returned = comm.sum(summed)
    return {
        "rank": rank,
        "sum": summed,
        "in place": returned is summed,
        "rows": comm.gather_rows(_rows(rank, (2 * rank) % 5)),
        "labels": comm.gather_rows(torch.arange(rank, dtype=torch.int64)),
        "only last": comm.gather_rows(_rows(rank, 3 if rank == comm.topology.world_size - 1 else 0)),
        "none": comm.gather_rows(_rows(rank, 0)),
        "vote": [comm.vote(rank), comm.vote(-rank), comm.vote(2**40 if rank == 0 else 0)],
        "share": comm.share({"from": rank, "text": "ü"}),
        "share none": comm.share(None if rank == 0 else "other"),
        "gather": comm.gather(("value", rank)),
    }


def _rows(rank: int, count: int) -> torch.Tensor:
    return 100 * rank + torch.arange(count * 4, dtype=torch.float32).reshape(count, 2, 2)


if __name__ == "__main__":
    with_comm(body)
