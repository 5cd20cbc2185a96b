"""How fast ranks talk to one another, and how far apart their clocks are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from hsadml_dist.comm import Comm
from hsadml_dist.launch.doctor.answer import CollectiveTiming

SIZES = (4 * 2**10, 2**20, 16 * 2**20)
"""Bytes that a rank has at the end of a collective: a loss, a layer, a network."""
CALLS = 7
VOTES = 21


def measure_collectives(comm: Comm) -> Iterator[CollectiveTiming]:
    """Yield how long each collective takes at each size; to be called by all ranks."""
    backend, world = "nccl" if comm.device.type == "cuda" else "gloo", comm.topology.world_size
    for size in SIZES:
        whole = torch.zeros(size // 4, device=comm.device)
        part = torch.zeros(-(-size // 4 // world), device=comm.device)
        operations: dict[str, Callable[[], torch.Tensor]] = {
            "all_reduce": lambda whole=whole: comm.all_reduce_sum(whole),  # type: ignore[misc]
            "all_gather": lambda part=part: comm.all_gather_rows(part, [len(part)] * world),  # type: ignore[misc]
        }
        for name, call in operations.items():
            yield CollectiveTiming(backend=backend, operation=name, size=size, seconds=_median(call, comm.device))


def sample_clocks(comm: Comm) -> tuple[tuple[float, ...], float]:
    """Return this rank's clock right after each of some votes, and the shortest time that a vote took, in seconds.

    All ranks leave a vote within its duration, so clocks that agree differ by less than that.
    """
    stamps, trips = [], []
    for _ in range(VOTES):
        began = time.perf_counter()
        comm.all_reduce_max([0.0])
        stamps.append(time.time())
        trips.append(time.perf_counter() - began)
    return tuple(stamps), min(trips)


def _median(call: Callable[[], torch.Tensor], device: torch.device) -> float:
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    # The first makes connections.
    return statistics.median(taken[1:])
