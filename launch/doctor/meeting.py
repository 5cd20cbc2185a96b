"""What the ranks of the doctor's job find out together: the network, the clocks, the folder that all of them see."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from hsadml_dist.comm import Address, Comm, SoloComm, TorchComm, device_for, join_store, open_store
from hsadml_dist.errors import ClusterError
from hsadml_dist.launch.doctor.answer import Timing, Together
from hsadml_dist.launch.doctor.collectives import clock_stamps, measure_collectives
from hsadml_dist.launch.doctor.disk import RACES, measure_speed, try_to_make
from hsadml_dist.launch.doctor.network import interface_of, own_address
from hsadml_dist.run.folder import replace_text
from hsadml_dist.topology import Topology

MEET_SECONDS = 60
SEE_SECONDS = 60.0
LOOK_SECONDS = 0.05
CPU = torch.device("cpu")


def meet(folder: Path, topology: Topology) -> Together:
    """Join the others and find out; to be called by all ranks.

    Raises:
        ClusterError: The ranks did not meet in time.
        RuntimeError: A collective failed.
        OSError: The folder cannot be written.
    """
    comm = _join(folder, topology, CPU)
    stamps, round_trip = clock_stamps(comm)
    timings = [*measure_collectives(comm)]
    seen, seen_seconds = see_the_others(folder, comm)
    won = race(folder, comm)
    rate = measure_speed(folder / f"speed-{topology.rank}").write_rate if topology.local_rank == 0 else None
    address = own_address(comm.share(socket.gethostname()))
    comm.close()
    timings += _on_gpus(folder, topology)
    return Together(
        address=address,
        interface=interface_of(address),
        stamps=stamps,
        round_trip=round_trip,
        timings=tuple(timings),
        seen=seen,
        seen_seconds=seen_seconds,
        won=won,
        write_rate=rate,
    )


def see_the_others(folder: Path, comm: Comm) -> tuple[int, float]:
    """Write a file, wait until those of all ranks are seen; return how many were, and after how many seconds."""
    signs = folder / "seen"
    signs.mkdir(exist_ok=True)
    (signs / f"rank-{comm.topology.rank}").touch()
    comm.vote([0.0])
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
        comm.vote([0.0])
        won.append(try_to_make(folder / f"race-{number}"))
    return tuple(won)


def _on_gpus(folder: Path, topology: Topology) -> Iterator[Timing]:
    device = device_for(topology)
    if device.type == "cuda":
        comm = _join(folder, topology, device)
        yield from measure_collectives(comm)
        comm.close()


def _join(folder: Path, topology: Topology, device: torch.device) -> Comm:
    if topology.world_size == 1:
        return SoloComm(device)
    path = folder / f"rendezvous-{device.type}.json"
    if topology.is_first:
        store, address = open_store(topology, MEET_SECONDS)
        replace_text(path, json.dumps({"host": address.host, "port": address.port}))
    else:
        store = join_store(_published(path), MEET_SECONDS)
    return TorchComm(topology, store, device, MEET_SECONDS)


def _published(path: Path) -> Address:
    deadline = time.monotonic() + MEET_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"rank 0 did not say within {MEET_SECONDS} s where it waits; do all nodes see {path.parent}?"
            )
        time.sleep(LOOK_SECONDS)
    return Address(**json.loads(path.read_text(encoding="utf-8")))
