"""Rendezvous of the ranks of one start: rank 0 starts an attempt and publishes its address, the others join it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hsadml_dist.atomic import write_text
from hsadml_dist.distributed.topology import Topology, launch_token
from hsadml_dist.errors import RunLockedError
from hsadml_dist.run.attempts import ENDED_JOB, AttemptHolder, current_holder, find_rendezvous, start_attempt
from hsadml_dist.run.folder import AttemptFolder, RunFolder

if TYPE_CHECKING:  # this package must import on a login node, without torch
    from hsadml_dist.distributed.comm import Comm

POLL_SECONDS = 0.05
GRACE_SECONDS = 4.0
"""How long a rank that was asked to stop still waits for rank 0: ranks start within seconds of one another."""


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """This rank's place in a running attempt."""

    attempt: AttemptFolder
    holder: AttemptHolder
    comm: Comm


def join_run(
    run: RunFolder,
    topology: Topology,
    facts: Mapping[str, Any],
    timeout_seconds: int,
    interrupted: Callable[[], bool],
) -> RankContext:
    """Start an attempt (rank 0) or find it (other ranks), and join the process groups.

    Args:
        facts: Entries of the attempt's record, in addition to its holder.
        timeout_seconds: Longest wait for a peer.
        interrupted: Returns True once this process was asked to stop.

    Raises:
        RunLockedError: Another live process writes the run, or rank 0 did not appear in time.
        ConfigError: Two ranks have the same GPU.
    """
    from hsadml_dist.distributed import comm
    from hsadml_dist.distributed.device import check_one_rank_per_gpu, gpu_name, local_device

    holder, device = current_holder(launch_token()), local_device(topology)
    if not topology.is_rank_zero:
        published = _wait_for_rank_0(run, holder.token, timeout_seconds, interrupted)
        attempt = run.attempt(published["attempt"])
        store = comm.connect_store(comm.StoreAddress(host=published["host"], port=published["port"]), timeout_seconds)
    else:
        attempt = start_attempt(run, holder, facts, ended_job=os.environ.get(ENDED_JOB))
        if topology.world_size == 1:
            return RankContext(attempt=attempt, holder=holder, comm=comm.SoloComm(device))
        store, address = comm.create_store(topology, timeout_seconds)
        published = {"token": holder.token, "attempt": attempt.number, "host": address.host, "port": address.port}
        write_text(attempt.rendezvous, json.dumps(published) + "\n")
    ranks = comm.TorchComm(topology, store, device, timeout_seconds)
    check_one_rank_per_gpu(ranks.all_gather_object(gpu_name(device)))
    return RankContext(attempt=attempt, holder=holder, comm=ranks)


def _wait_for_rank_0(
    run: RunFolder, token: str, timeout_seconds: float, interrupted: Callable[[], bool]
) -> dict[str, Any]:
    began, stopping = time.monotonic(), False
    deadline = began + timeout_seconds
    while time.monotonic() < deadline:
        published = find_rendezvous(run, token)
        if published is not None:
            return published
        if not stopping and interrupted():
            # It does not leave at once: if rank 0 is only slow to start, it must not wait for this rank in vain. Nor
            # is the exit code 85: rank 0 may have been refused, and that must not queue the job again.
            stopping, deadline = True, min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(POLL_SECONDS)
    raise RunLockedError(f"{run.path}: rank 0 of this start did not appear within {time.monotonic() - began:.0f} s")
