"""Rendezvous of the ranks of one start: rank 0 starts an attempt and publishes its address, the others join it."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hsadml_dist.atomic import write_text
from hsadml_dist.distributed.topology import Topology, launch_token
from hsadml_dist.errors import RunError, RunLockedError
from hsadml_dist.run.attempts import ENDED_JOB, AttemptHolder, current_holder, find_rendezvous, start_attempt
from hsadml_dist.run.folder import AttemptFolder, RunFolder

if TYPE_CHECKING:  # this package must import on a login node, without torch
    from torch.distributed import Store

    from hsadml_dist.distributed.comm import Comm

POLL_SECONDS = 0.05
SECRET_MODE = 0o600
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
        RunError: Another user has written the file of the rendezvous, or has joined in.
    """
    from hsadml_dist.distributed.comm import SoloComm, TorchComm
    from hsadml_dist.distributed.device import check_one_rank_per_gpu, gpu_name, local_device
    from hsadml_dist.distributed.rank_store import StoreAddress, connect_store, create_store, keep_gloo_on_loopback

    holder, device = current_holder(launch_token()), local_device(topology)
    if not topology.is_rank_zero:
        published = _wait_for_rank_0(run, holder.token, timeout_seconds, interrupted)
        attempt = run.attempt(published["attempt"])
        address = StoreAddress(**{name: published[name] for name in ("host", "port", "secret")})
        store = connect_store(address, timeout_seconds)
    else:
        attempt = start_attempt(run, holder, facts, ended_job=os.environ.get(ENDED_JOB))
        if topology.world_size == 1:
            return RankContext(attempt=attempt, holder=holder, comm=SoloComm(device))
        store, address = create_store(topology, timeout_seconds)
        published = {"token": holder.token, "attempt": attempt.number, **asdict(address)}
        write_text(attempt.rendezvous, json.dumps(published) + "\n", mode=SECRET_MODE)
    keep_gloo_on_loopback(topology)
    ranks = TorchComm(topology, store, device, timeout_seconds)
    check_peers(store, ranks)
    check_one_rank_per_gpu(ranks.all_gather_json(gpu_name(device)))
    return RankContext(attempt=attempt, holder=holder, comm=ranks)


def check_peers(store: Store, ranks: Comm) -> None:
    """Raise RunError unless each peer of the control group is the process that has the secret of this start."""
    mine, number = secrets.token_hex(16), ranks.topology.rank
    store.set(f"peer {number}", mine)
    for rank, found in enumerate(ranks.all_gather_json(mine)):
        if store.get(f"peer {rank}").decode() != found:
            raise RunError(f"rank {rank} is not a rank of this start: a stranger has joined in; the start is refused")


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
