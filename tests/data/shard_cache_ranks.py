"""Processes that copy shards, each single-threaded; one case per start."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from data.loader_ranks import STOP_SIGNALS, deliver, state_of
from rank_script import RankArguments

from hsadml_dist.config.recipe import DataConfig
from hsadml_dist.data.index import ShardIndex, load_index
from hsadml_dist.data.loader import Loader, build_loader
from hsadml_dist.data.order import ExactOrder, Order, ShardSchedule, WindowOrder
from hsadml_dist.data.shard_cache import ShardCache, ShardLocation, ShardPrefetcher, train_shard_location
from hsadml_dist.distributed.topology import Topology

BATCH, STEPS, SEED = 12, 7, 1
LAST = 10_000


def everyone(url: str, index: ShardIndex, arguments: RankArguments) -> dict[str, Any]:
    """Copy all shards, as all other ranks do at the same time; return the files there are then."""
    cache = cache_of(url, arguments)
    for file in index.shards:
        cache.fetch(file)
    return {"names": sorted(os.listdir(cache.folder))}


def holder(url: str, index: ShardIndex, arguments: RankArguments) -> None:
    """Copy the first shard; the server stalls, and the test kills this process."""
    (arguments.folder / "pid").write_text(str(os.getpid()))
    cache_of(url, arguments).fetch(index.shards[0])


def prefetch(url: str, index: ShardIndex, arguments: RankArguments) -> dict[str, Any]:
    """Return what a prefetcher does before it is started, after stop signals, and when everything is there."""
    cache, schedule = cache_of(url, arguments), schedule_of(index)
    prefetcher = ShardPrefetcher(cache, schedule)
    second = Topology(rank=1, world_size=2, local_rank=1, local_world_size=2)
    other = ShardPrefetcher(cache, schedule_of(index, second))
    wait_until_ignored(prefetcher.pid)
    for number in STOP_SIGNALS:
        os.kill(prefetcher.pid, number)
    answer: dict[str, Any] = {"before": list(cache.folder.glob("*")), "other": other.pid}
    prefetcher.start(6, LAST)
    expected = [file.sha256 for file in schedule.node_shards(6, LAST)]
    os.waitpid(prefetcher.pid, 0)
    arrived = sorted(cache.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime_ns)
    prefetcher.close()
    return {**answer, "expected": expected, "arrived": [path.stem for path in arrived]}


def wait_until_ignored(pid: int) -> None:
    """Wait until a fresh process ignores the stop signals."""
    mask = sum(1 << (number - 1) for number in STOP_SIGNALS)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status").read_text()
        ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1], 16)
        if ignored & mask == mask:
            return
        time.sleep(0.01)
    raise TimeoutError("the prefetcher does not ignore the stop signals")


def closed(url: str, index: ShardIndex, arguments: RankArguments) -> dict[str, Any]:
    """Return what is left of a prefetcher closed while the server stalls, and how a rank's wait ends."""
    children = child_pids()
    loader = loader_of(cache_of(url, arguments), index, workers=0)
    (pid,) = child_pids() - children
    loader.start(1, STEPS)
    polls = itertools.count()
    batch = loader.next(lambda: next(polls) > 3)
    loader.close()
    return {"batch": batch, "left": state_of(pid)}


def orphan(url: str, index: ShardIndex, arguments: RankArguments) -> None:
    """Write down the id of a prefetcher that waits for the server, and die."""
    children = child_pids()
    loader = loader_of(cache_of(url, arguments), index, workers=0)
    (pid,) = child_pids() - children
    loader.start(1, STEPS)
    (arguments.folder / "pid").write_text(str(pid))
    wait_until_ignored(pid)
    os.kill(os.getpid(), signal.SIGKILL)


def child_pids() -> set[int]:
    """Return this process's children, without those of multiprocessing."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return set(map(int, children)) - {child.pid for child in multiprocessing.active_children()}


def batches(sources: str, index: ShardIndex, arguments: RankArguments) -> dict[str, Any]:
    """Return the batches of loaders from a folder, and from copies of a folder and of a URL."""
    folder, url = sources.split()
    locations = {
        "plain": train_shard_location(folder, None),
        "local 0": train_shard_location(folder, str(arguments.folder / "local 0")),
        "local 2": train_shard_location(folder, str(arguments.folder / "local 2")),
        "remote 0": train_shard_location(url, str(arguments.folder / "remote 0")),
        "remote 2": train_shard_location(url, str(arguments.folder / "remote 2")),
    }
    loaders = {name: loader_of(place, index, workers=2 if "2" in name else 0) for name, place in locations.items()}
    answer: dict[str, Any] = {"threads": [loader.threads_at_fork for loader in loaders.values()]}
    for name, loader in loaders.items():
        answer[name] = deliver(loader, 1, STEPS)
        loader.close()
    return answer


def cache_of(url: str, arguments: RankArguments) -> ShardCache:
    """Return a cache of a URL in the job's folder."""
    return ShardCache(source=url, folder=arguments.folder / "stage")


def schedule_of(index: ShardIndex, topology: Topology | None = None, order: Order | None = None) -> ShardSchedule:
    """Return the schedule of a training outside fold 0; by default one shard at a time."""
    positions = index.outside_folds([0])
    if order is None:
        shard_N = np.array([index.samples[position].shard for position in positions])
        order = WindowOrder(shard_N=shard_N, window=1, global_batch=BATCH, seed=SEED)
    return ShardSchedule(index=index, positions=positions, order=order, topology=topology or Topology())


def loader_of(location: ShardLocation, index: ShardIndex, workers: int) -> Loader:
    """Return the loader of a training outside fold 0."""
    order = ExactOrder(count=len(index.outside_folds([0])), global_batch=BATCH, seed=SEED)
    data = DataConfig(shards="unused", image_size=32, transforms=(), workers=workers)
    return build_loader(location, schedule_of(index, order=order), data)


if __name__ == "__main__":
    arguments = RankArguments.read()
    os.environ["NO_PROXY"] = "127.0.0.1"
    name, folder, rest = arguments.case.split(" ", 2)
    cases = {case.__name__: case for case in (everyone, holder, prefetch, closed, orphan, batches)}
    arguments.save_result(cases[name](rest, load_index(Path(folder)), arguments))
