"""How the ranks of one start find one another: rank 0 takes an attempt and publishes where it waits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.distributed import Store

from hsadml_dist.distributed.comm import (
    Comm,
    SoloComm,
    StoreAddress,
    TorchComm,
    connect_store,
    create_store,
    launch_token,
    local_device,
)
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import RunLockedError
from hsadml_dist.run.attempts import ENDED_JOB, AttemptHolder, current_holder, find_rendezvous, start_attempt
from hsadml_dist.run.folder import AttemptFolder, RunFolder, replace_text

LOOK_SECONDS = 0.05
GRACE_SECONDS = 4.0
"""How long a rank that was told to stop goes on waiting for rank 0: ranks start within seconds of one another."""


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
    """Take an attempt (rank 0) or find it (the others), and join the groups.

    Args:
        run: The run folder.
        topology: This rank's place.
        facts: What the attempt's record shall hold besides its holder.
        timeout_seconds: Longest wait for a peer.
        interrupted: Whether this process was told to stop meanwhile.

    Raises:
        RunLockedError: Another live process writes the run, or rank 0 did not appear in time.
    """
    me = current_holder(launch_token())
    device = local_device(topology)
    if not topology.is_rank_zero:
        attempt, store = _join(run, me, timeout_seconds, interrupted)
    else:
        attempt = start_attempt(run, me, facts, ended_job=os.environ.get(ENDED_JOB))
        if topology.world_size == 1:
            return RankContext(attempt=attempt, holder=me, comm=SoloComm(device))
        store = _publish(attempt, me, topology, timeout_seconds)
    return RankContext(attempt=attempt, holder=me, comm=TorchComm(topology, store, device, timeout_seconds))


def _publish(attempt: AttemptFolder, me: AttemptHolder, topology: Topology, timeout_seconds: int) -> Store:
    """Open the store and say where it is."""
    store, address = create_store(topology, timeout_seconds)
    published = {"token": me.token, "attempt": attempt.number, "host": address.host, "port": address.port}
    replace_text(attempt.rendezvous, json.dumps(published) + "\n")
    return store


def _join(
    run: RunFolder, me: AttemptHolder, timeout_seconds: int, interrupted: Callable[[], bool]
) -> tuple[AttemptFolder, Store]:
    """Wait for what rank 0 says and connect."""
    published = _wait_for_rank_0(run, me.token, timeout_seconds, interrupted)
    address = StoreAddress(host=published["host"], port=published["port"])
    return run.attempt(published["attempt"]), connect_store(address, timeout_seconds)


def _wait_for_rank_0(
    run: RunFolder, token: str, timeout_seconds: float, interrupted: Callable[[], bool]
) -> dict[str, Any]:
    began, told = time.monotonic(), False
    deadline = began + timeout_seconds
    while time.monotonic() < deadline:
        published = find_rendezvous(run, token)
        if published is not None:
            return published
        if not told and interrupted():
            # Not left at once: if rank 0 is only slow to start, it must not wait for this rank in vain. The code is
            # not 85 either: rank 0 may have been refused, and a job must not be queued again for that.
            told, deadline = True, min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(LOOK_SECONDS)
    raise RunLockedError(f"{run.path}: rank 0 of this start did not appear within {time.monotonic() - began:.0f} s")
