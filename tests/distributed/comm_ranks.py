"""All collectives once, with values from which the test can tell every rank's share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from rank_script import with_comm

from hsadml_dist.distributed.comm import Comm


def body(comm: Comm, case: str) -> dict[str, Any]:
    """Return what each collective gave this rank."""
    rank, world = comm.topology.rank, comm.topology.world_size
    counts = [(3 * other + 2) % 4 for other in range(world)]
    largest = torch.tensor([float(rank), -float(rank), 7.0])
    apart = comm.new_train_group()
    summed = torch.full((2, 3), 10.0**rank, dtype=torch.float64)
    returned = comm.all_reduce_sum(summed)
    return {
        "rank": rank,
        "sum": summed,
        "in place": returned is summed,
        "rows": comm.all_gather_rows(_rows(rank, (2 * rank) % 5)),
        "labels": comm.all_gather_rows(torch.arange(rank, dtype=torch.int64)),
        "only last": comm.all_gather_rows(_rows(rank, 3 if rank == comm.topology.world_size - 1 else 0)),
        "none": comm.all_gather_rows(_rows(rank, 0)),
        "max": largest,
        "max in place": comm.all_reduce_max_tensor(largest) is largest,
        "sizes": comm.all_gather_sizes(counts[rank]),
        "known sizes": comm.all_gather_rows(_rows(rank, counts[rank]), counts),
        "scattered": comm.reduce_scatter_rows(_alike(rank, sum(counts)), counts),
        "scattered none": comm.reduce_scatter_rows(_alike(rank, 0), [0] * world),
        "apart": [apart.all_reduce_sum(torch.tensor(10.0**rank)), comm.all_reduce_sum(torch.tensor(10.0**rank))],
        "groups differ": apart.group is not comm.group,
        "apart is the same place": (apart.topology, apart.device) == (comm.topology, comm.device),
        "crossed": _crossed(comm, apart),
        "crossed control": _crossed_control(comm, comm.new_control_group()),
        "vote": [
            comm.all_reduce_max([rank, -rank]),
            comm.all_reduce_max([2.0**40 + 0.5 if rank == 0 else 0.0]),
            comm.all_reduce_max([]),
        ],
        "share": comm.broadcast_object({"from": rank, "text": "ü"}),
        "share none": comm.broadcast_object(None if rank == 0 else "other"),
        "gather": comm.all_gather_object(("value", rank)),
    }


def _rows(rank: int, count: int) -> torch.Tensor:
    return 100 * rank + torch.arange(count * 4, dtype=torch.float32).reshape(count, 2, 2)


def _alike(rank: int, count: int) -> torch.Tensor:
    return 10.0**rank * (1 + torch.arange(count * 2, dtype=torch.float64).reshape(count, 2))


def _crossed(comm: Comm, apart: Comm) -> list[float]:
    """Send over both groups at once, from threads that odd ranks start the other way round."""
    found = [0.0, 0.0]

    def send(number: int) -> None:
        found[number] = float(
            (comm, apart)[number].all_reduce_sum(torch.tensor(float(comm.topology.rank + 10 * number)))
        )

    _both_at_once(comm, send)
    return found


def _crossed_control(comm: Comm, aside: Comm) -> list[list[int]]:
    """Gather over both control groups at once, in the same manner."""
    found: list[list[int]] = [[], []]

    def send(number: int) -> None:
        found[number] = (comm, aside)[number].all_gather_object(comm.topology.rank + 10 * number)

    _both_at_once(comm, send)
    return found


def _both_at_once(comm: Comm, send: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=send, args=(number,)) for number in (0, 1)]
    for thread in threads[:: -1 if comm.topology.rank % 2 else 1]:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    with_comm(body)
