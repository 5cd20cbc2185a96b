"""What the ranks of the doctor's job find out together: the network, the clocks, the folder that all of them see."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from hsadml_dist.comm import Comm, SoloComm, StoreAddress, TorchComm, connect_store, create_store, local_device
from hsadml_dist.errors import ClusterError
from hsadml_dist.launch.doctor.answer import CollectiveTiming, GroupReport
from hsadml_dist.launch.doctor.collectives import measure_collectives, sample_clocks
from hsadml_dist.launch.doctor.disk import RACES, measure_speed, try_mkdir
from hsadml_dist.launch.doctor.network import interface_with_address, source_address
from hsadml_dist.run.folder import replace_text
from hsadml_dist.topology import Topology

MEET_SECONDS = 60
SEE_SECONDS = 60.0
LOOK_SECONDS = 0.05
CPU = torch.device("cpu")


def meet(folder: Path, topology: Topology) -> GroupReport:
    """Join the others and find out; to be called by all ranks.

    Raises:
        ClusterError: The ranks did not meet in time.
        RuntimeError: A collective failed.
        OSError: The folder cannot be written.
    """
    comm = _join(folder, topology, CPU)
    stamps, round_trip = sample_clocks(comm)
    timings = [*measure_collectives(comm)]
    seen, seen_seconds = wait_for_peer_files(folder, comm)
    won = race(folder, comm)
    rate = measure_speed(folder / f"speed-{topology.rank}").write_rate if topology.local_rank == 0 else None
    address = source_address(comm.broadcast_object(socket.gethostname()))
    comm.close()
    timings += _on_gpus(folder, topology)
    return GroupReport(
        address=address,
        interface=interface_with_address(address),
        stamps=stamps,
        round_trip=round_trip,
        timings=tuple(timings),
        seen=seen,
        seen_seconds=seen_seconds,
        won=won,
        write_rate=rate,
    )


def wait_for_peer_files(folder: Path, comm: Comm) -> tuple[int, float]:
    """Write a file, wait until those of all ranks are seen; return how many were, and after how many seconds."""
    signs = folder / "seen"
    signs.mkdir(exist_ok=True)
    (signs / f"rank-{comm.topology.rank}").touch()
    comm.all_reduce_max([0.0])
    began = time.monotonic()
    while True:
        seen, waited = len(list(signs.iterdir())), time.monotonic() - began
        if seen == comm.topology.world_size or waited > SEE_SECONDS:
            return seen, waited
        time.sleep(LOOK_SECONDS)


def race(folder: Path, comm: Comm) -> tuple[bool, ...]:
    """Try to make the same folders as all other ranks at the same time; return which of them it was that made them."""
    won = []
    for number in range(RACES):
        comm.all_reduce_max([0.0])
        won.append(try_mkdir(folder / f"race-{number}"))
    return tuple(won)


def _on_gpus(folder: Path, topology: Topology) -> Iterator[CollectiveTiming]:
    device = local_device(topology)
    if device.type == "cuda":
        comm = _join(folder, topology, device)
        yield from measure_collectives(comm)
        comm.close()


def _join(folder: Path, topology: Topology, device: torch.device) -> Comm:
    if topology.world_size == 1:
        return SoloComm(device)
    path = folder / f"rendezvous-{device.type}.json"
    if topology.is_rank_zero:
        store, address = create_store(topology, MEET_SECONDS)
        replace_text(path, json.dumps({"host": address.host, "port": address.port}))
    else:
        store = connect_store(_published(path), MEET_SECONDS)
    return TorchComm(topology, store, device, MEET_SECONDS)


def _published(path: Path) -> StoreAddress:
    deadline = time.monotonic() + MEET_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"rank 0 did not say within {MEET_SECONDS} s where it waits; do all nodes see {path.parent}?"
            )
        time.sleep(LOOK_SECONDS)
    return StoreAddress(**json.loads(path.read_text(encoding="utf-8")))
