"""Measurements that the ranks of the doctor's job make together: network, clocks and shared folder."""

from __future__ import annotations

import fcntl
import json
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from hsadml_dist.distributed.comm import (
    Comm,
    SoloComm,
    StoreAddress,
    TorchComm,
    connect_store,
    create_store,
    local_device,
)
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import ClusterError
from hsadml_dist.launch.doctor.disk_checks import RACES, measure_speed, try_mkdir
from hsadml_dist.launch.doctor.rank_report import CollectiveTiming, GroupReport
from hsadml_dist.run.folder import replace_text

SIOCGIFADDR = 0x8915
ANY_PORT = 9
"""A datagram socket that is connected sends nothing: the port does not matter."""


def source_address(peer: str) -> str:
    """Return the address from which this machine reaches ``peer``; empty where it cannot."""
    try:
        family, _, _, _, target = socket.getaddrinfo(peer, ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def interface_with_address(address: str) -> str:
    """Return the name of the interface that has an IPv4 address; empty: not known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


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
