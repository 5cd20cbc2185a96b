"""Measurements that the ranks of the doctor's job make together: network, clocks and shared folder."""

from __future__ import annotations

import fcntl
import json
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from hsadml_dist.atomic import write_text
from hsadml_dist.distributed.comm import Comm, SoloComm, TorchComm
from hsadml_dist.distributed.device import local_device
from hsadml_dist.distributed.rank_store import StoreAddress, connect_store, create_store, keep_gloo_on_loopback
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import ClusterError
from hsadml_dist.launch.doctor.disk_checks import RACES, measure_speed, try_mkdir
from hsadml_dist.launch.doctor.probe_job import CollectiveTiming, GroupReport

SIOCGIFADDR = 0x8915
ANY_PORT = 9
"""Connecting a datagram socket sends nothing, so the port does not matter."""

SIZES = (4 * 2**10, 2**20, 16 * 2**20)
"""Bytes of a collective's result on each rank: about a loss, a layer and a network."""
CALLS = 7
CLOCK_SAMPLES = 21
CONNECT_SECONDS = 60
VISIBLE_SECONDS = 60.0
POLL_SECONDS = 0.05


def measure_group(folder: Path, topology: Topology) -> GroupReport:
    """Connect to the peers and measure, in a folder that all ranks should share. Collective: every rank must call it.

    Raises:
        ClusterError: The ranks did not connect in time.
        RuntimeError: A collective failed.
        OSError: The folder is not writable.
    """
    comm = _connect(folder, topology, torch.device("cpu"))
    stamps, round_trip = sample_clocks(comm)
    timings = [*measure_collectives(comm)]
    seen, seen_seconds = wait_for_peer_files(folder, comm)
    won = race_to_create(folder, comm)
    rate = measure_speed(folder / f"speed-{topology.rank}").write_rate if topology.local_rank == 0 else None
    address = source_address(comm.broadcast_json(socket.gethostname()))
    comm.close()
    device = local_device(topology)
    if device.type == "cuda":
        comm = _connect(folder, topology, device)
        timings += measure_collectives(comm)
        comm.close()
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


def source_address(peer: str) -> str:
    """Return the address from which this machine reaches ``peer``; empty if it cannot."""
    try:
        family, _, _, _, target = socket.getaddrinfo(peer, ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def interface_with_address(address: str) -> str:
    """Return the name of the network interface with an IPv4 address; empty if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def measure_collectives(comm: Comm) -> Iterator[CollectiveTiming]:
    """Yield the duration of each collective at each size. Collective: every rank must call it."""
    backend, world = "nccl" if comm.device.type == "cuda" else "gloo", comm.topology.world_size
    for size in SIZES:
        whole = torch.zeros(size // 4, device=comm.device)
        part = torch.zeros(-(-size // 4 // world), device=comm.device)
        operations: dict[str, Callable[[], torch.Tensor]] = {
            "all_reduce": lambda whole=whole: comm.all_reduce_sum(whole),  # type: ignore[misc]
            "all_gather": lambda part=part: comm.all_gather_rows(part, [len(part)] * world),  # type: ignore[misc]
        }
        for name, call in operations.items():
            seconds = _median_seconds(call, comm.device)
            yield CollectiveTiming(backend=backend, operation=name, size=size, seconds=seconds)


def sample_clocks(comm: Comm) -> tuple[tuple[float, ...], float]:
    """Read this rank's clock right after each of several all-reduces. Collective: every rank must call it.

    All ranks leave an all-reduce within its duration, so synchronised clocks differ by less than that.

    Returns:
        The clock readings in seconds since 1970 UTC, and the shortest duration of an all-reduce in seconds.
    """
    stamps, durations = [], []
    for _ in range(CLOCK_SAMPLES):
        start = time.perf_counter()
        comm.all_reduce_max([0.0])
        stamps.append(time.time())
        durations.append(time.perf_counter() - start)
    return tuple(stamps), min(durations)


def wait_for_peer_files(folder: Path, comm: Comm) -> tuple[int, float]:
    """Return how many ranks' files are visible, and after how many seconds. Collective: every rank must call it."""
    files = folder / "seen"
    files.mkdir(exist_ok=True)
    (files / f"rank-{comm.topology.rank}").touch()
    comm.all_reduce_max([0.0])
    start = time.monotonic()
    while True:
        seen, waited = len(list(files.iterdir())), time.monotonic() - start
        if seen == comm.topology.world_size or waited > VISIBLE_SECONDS:
            return seen, waited
        time.sleep(POLL_SECONDS)


def race_to_create(folder: Path, comm: Comm) -> tuple[bool, ...]:
    """Race to create folders; return True for each that this rank created. Collective: every rank must call it."""
    won = []
    for number in range(RACES):
        comm.all_reduce_max([0.0])
        won.append(try_mkdir(folder / f"race-{number}"))
    return tuple(won)


def _median_seconds(call: Callable[[], torch.Tensor], device: torch.device) -> float:
    durations = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    # The first call opens connections.
    return statistics.median(durations[1:])


def _connect(folder: Path, topology: Topology, device: torch.device) -> Comm:
    if topology.world_size == 1:
        return SoloComm(device)
    path = folder / f"rendezvous-{device.type}.json"
    keep_gloo_on_loopback(topology)
    if topology.is_rank_zero:
        store, address = create_store(topology, CONNECT_SECONDS)
        write_text(path, json.dumps(asdict(address)), mode=0o600)
    else:
        store = connect_store(_wait_for_address(path), CONNECT_SECONDS)
    return TorchComm(topology, store, device, CONNECT_SECONDS)


def _wait_for_address(path: Path) -> StoreAddress:
    deadline = time.monotonic() + CONNECT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"rank 0 published no address within {CONNECT_SECONDS} s; do all nodes see {path.parent}?"
            )
        time.sleep(POLL_SECONDS)
    return StoreAddress(**json.loads(path.read_text(encoding="utf-8")))
