"""Every collective once, with values that show each rank's contribution.

The case ``own`` uses the groups of a training run; ``borrowed`` an existing process group, ``subgroup`` an
existing group of half the ranks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from rank_script import RankArguments, connect, with_comm

from hsadml_dist.distributed.comm import Comm, comm_from_process_group

CPU = torch.device("cpu")


def body(comm: Comm, case: str) -> dict[str, Any]:
    """Return the results of each collective on this rank."""
    rank, world = comm.topology.rank, comm.topology.world_size
    counts = [(3 * other + 2) % 4 for other in range(world)]
    largest = torch.tensor([float(rank), -float(rank), 7.0])
    second = comm.new_train_group()
    summed = torch.full((2, 3), 10.0**rank, dtype=torch.float64)
    returned = comm.all_reduce_sum(summed)
    return {
        "rank": rank,
        "sum": summed,
        "sum in place": returned is summed,
        "rows": comm.all_gather_rows(_rows(rank, (2 * rank) % 5)),
        "labels": comm.all_gather_rows(torch.arange(rank, dtype=torch.int64)),
        "rows of last rank": comm.all_gather_rows(_rows(rank, 3 if rank == world - 1 else 0)),
        "no rows": comm.all_gather_rows(_rows(rank, 0)),
        "tensor max": largest,
        "tensor max in place": comm.all_reduce_max_tensor(largest) is largest,
        "sizes": comm.all_gather_sizes(counts[rank]),
        "rows of known sizes": comm.all_gather_rows(_rows(rank, counts[rank]), counts),
        "scattered": comm.reduce_scatter_rows(_multiples(rank, sum(counts)), counts),
        "scattered none": comm.reduce_scatter_rows(_multiples(rank, 0), [0] * world),
        "sums": [c.all_reduce_sum(torch.tensor(10.0**rank)) for c in (second, comm)],
        "groups differ": second.group is not comm.group,
        "same place": (second.topology, second.device) == (comm.topology, comm.device),
        "crossed sums": _crossed_sums(comm, second),
        "crossed objects": _crossed_objects(comm, comm.new_control_group()),
        "max": [
            comm.all_reduce_max([rank, -rank]),
            comm.all_reduce_max([2.0**40 + 0.5 if rank == 0 else 0.0]),
            comm.all_reduce_max([]),
        ],
        "broadcast": comm.broadcast_json({"from": rank, "text": "ü"}),
        "broadcast none": comm.broadcast_json(None if rank == 0 else "other"),
        "objects": comm.all_gather_json(["value", rank]),
    }


def borrowed(arguments: RankArguments) -> None:
    """Answer with the results over a borrowed group, and whether it survives ``close``."""
    solo = comm_from_process_group(None, CPU)
    owner = connect(arguments) if arguments.world > 1 else None
    group = None
    if arguments.case == "subgroup":
        halves = [list(range(half, arguments.world, 2)) for half in (0, 1)]
        group = [dist.new_group(half) for half in halves][arguments.rank % 2]
    comm = comm_from_process_group(group, CPU)
    answer = body(comm, arguments.case)
    comm.close()
    answer |= {"alive": dist.is_initialized(), "before": type(solo).__name__, "solo": type(comm).__name__ == "SoloComm"}
    if owner is not None:
        owner.close()
    arguments.save_result(answer)


def _rows(rank: int, count: int) -> torch.Tensor:
    return 100 * rank + torch.arange(count * 4, dtype=torch.float32).reshape(count, 2, 2)


def _multiples(rank: int, count: int) -> torch.Tensor:
    return 10.0**rank * (1 + torch.arange(count * 2, dtype=torch.float64).reshape(count, 2))


def _crossed_sums(comm: Comm, second: Comm) -> list[float]:
    """Sum over both groups at once, from threads that odd ranks start in the opposite order."""
    found = [0.0, 0.0]

    def send(number: int) -> None:
        value = torch.tensor(float(comm.topology.rank + 10 * number))
        found[number] = float((comm, second)[number].all_reduce_sum(value))

    _both_at_once(comm, send)
    return found


def _crossed_objects(comm: Comm, second: Comm) -> list[list[int]]:
    """Gather over both control groups at once, in the same way."""
    found: list[list[int]] = [[], []]

    def send(number: int) -> None:
        found[number] = (comm, second)[number].all_gather_json(comm.topology.rank + 10 * number)

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
    arguments = RankArguments.read()
    if arguments.case == "own":
        with_comm(body)
    else:
        borrowed(arguments)
