"""How the ranks of one start find one another: rank 0 takes an attempt and publishes where it waits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hsadml_dist.comm import (
    Address,
    Comm,
    SoloComm,
    TorchComm,
    device_for,
    join_store,
    launch_token,
    open_store,
)
from hsadml_dist.errors import RunHeldError, StoppedError
from hsadml_dist.run.attempts import Holder, find_rendezvous, take, this_process
from hsadml_dist.run.folder import AttemptFolder, RunFolder, replace_text
from hsadml_dist.topology import Topology

LOOK_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Entry:
    """This rank's place in a running attempt."""

    attempt: AttemptFolder
    holder: Holder
    comm: Comm


def enter(
    run: RunFolder,
    topology: Topology,
    facts: Mapping[str, Any],
    timeout_seconds: int,
    interrupted: Callable[[], bool],
) -> Entry:
    """Take an attempt (rank 0) or find it (the others), and join the groups.

    Args:
        run: The run folder.
        topology: This rank's place.
        facts: What the attempt's record shall hold besides its holder.
        timeout_seconds: Longest wait for a peer.
        interrupted: Whether this process was told to stop meanwhile.

    Raises:
        RunHeldError: Another live process writes the run, or rank 0 did not appear in time.
        StoppedError: Told to stop before rank 0 appeared.
    """
    me = this_process(launch_token())
    device = device_for(topology)
    attempt = take(run, me, facts) if topology.is_first else None
    if attempt is not None and topology.world_size == 1:
        return Entry(attempt=attempt, holder=me, comm=SoloComm(device))
    if attempt is not None:
        store, address = open_store(topology, timeout_seconds)
        published = {"token": me.token, "attempt": attempt.number, "host": address.host, "port": address.port}
        replace_text(attempt.rendezvous, json.dumps(published) + "\n")
    else:
        published = _wait_for_rank_0(run, me.token, timeout_seconds, interrupted)
        attempt = run.attempt(published["attempt"])
        store = join_store(Address(host=published["host"], port=published["port"]), timeout_seconds)
    return Entry(attempt=attempt, holder=me, comm=TorchComm(topology, store, device, timeout_seconds))


def _wait_for_rank_0(
    run: RunFolder, token: str, timeout_seconds: int, interrupted: Callable[[], bool]
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        published = find_rendezvous(run, token)
        if published is not None:
            return published
        if interrupted():
            raise StoppedError(f"{run.path}: told to stop before rank 0 had begun")
        time.sleep(LOOK_SECONDS)
    raise RunHeldError(f"{run.path}: rank 0 of this start did not appear within {timeout_seconds} s")
