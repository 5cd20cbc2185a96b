"""Who copies shards, as real processes of one thread; one case a start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from data.loader_ranks import deliver, state_of
from hsadml_dist.data.shard_prefetch import ShardPrefetcher, ShardSchedule
from rank_script import Call

from hsadml_dist.data.index import ShardIndex, load_index
from hsadml_dist.data.loader import Loader, build_loader
from hsadml_dist.data.order import ExactOrder, WindowOrder
from hsadml_dist.data.shard_cache import ShardCache, ShardLocation, train_shard_location
from hsadml_dist.distributed.topology import Topology

BATCH, STEPS, SEED = 12, 7, 1
LAST = 10_000


def everyone(address: str, index: ShardIndex, call: Call) -> dict[str, Any]:
    """Copy all shards, as all other ranks do at the same time; return what there is then."""
    stage = stage_of(address, call)
    for file in index.shards:
        stage.fetch(file)
    return {"names": sorted(os.listdir(stage.folder))}


def holder(address: str, index: ShardIndex, call: Call) -> None:
    """Copy the first shard; the server stalls, and somebody kills this process."""
    (call.folder / "pid").write_text(str(os.getpid()))
    stage_of(address, call).fetch(index.shards[0])


def ahead(address: str, index: ShardIndex, call: Call) -> dict[str, Any]:
    """Return what a process that copies ahead does before it is told to, after notices, and when all is there."""
    stage, need = stage_of(address, call), need_of(index)
    stager = ShardPrefetcher(stage, need)
    other = ShardPrefetcher(stage, need_of(index, Topology(rank=1, world_size=2, local_rank=1, local_world_size=2)))
    for notice in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        time.sleep(0.05)  # time for a fresh process to become deaf
        os.kill(stager.pid, notice)
    time.sleep(0.1)
    answer: dict[str, Any] = {"before": list(stage.folder.glob("*")), "state": state_of(stager.pid), "other": other.pid}
    stager.start(6, LAST)
    expected = [file.sha256 for file in need.node_shards(6, LAST)]
    os.waitpid(stager.pid, 0)
    arrived = sorted(stage.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime_ns)
    stager.close()
    return {**answer, "expected": expected, "arrived": [path.stem for path in arrived]}


def closed(address: str, index: ShardIndex, call: Call) -> dict[str, Any]:
    """Return what is left of a process that is closed while the server stalls, and how a rank's wait ends."""
    loader = loader_of(stage_of(address, call), index, workers=0)
    pid = loader._stager.pid
    loader.start(1, STEPS)
    began = time.monotonic()
    batch = loader.next(lambda: time.monotonic() > began + 0.3)
    loader.close()
    return {"batch": batch, "left": state_of(pid), "seconds": time.monotonic() - began}


def orphan(address: str, index: ShardIndex, call: Call) -> None:
    """Leave the id of a process that stalls behind, and die."""
    loader = loader_of(stage_of(address, call), index, workers=0)
    loader.start(1, STEPS)
    (call.folder / "pid").write_text(str(loader._stager.pid))
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def batches(sources: str, index: ShardIndex, call: Call) -> dict[str, Any]:
    """Return what loaders deliver from a folder, and from copies made of a folder and of an address."""
    folder, address = sources.split()
    place = {
        "plain": train_shard_location(folder, None),
        "local 0": train_shard_location(folder, str(call.folder / "local 0")),
        "local 2": train_shard_location(folder, str(call.folder / "local 2")),
        "remote 0": train_shard_location(address, str(call.folder / "remote 0")),
        "remote 2": train_shard_location(address, str(call.folder / "remote 2")),
    }
    loaders = {name: loader_of(place[name], index, workers=2 if name.endswith("2") else 0) for name in place}
    answer: dict[str, Any] = {"threads": [loader.threads_at_fork for loader in loaders.values()]}
    for name, loader in loaders.items():
        answer[name] = deliver(loader, 1, STEPS)
        loader.close()
    return answer


def stage_of(address: str, call: Call) -> ShardCache:
    """Return copies of an address in the job's folder."""
    return ShardCache(source=address, folder=call.folder / "stage")


def need_of(index: ShardIndex, topology: Topology | None = None) -> ShardSchedule:
    """Return what a training outside fold 0 needs, one shard at a time."""
    positions = index.outside_folds([0])
    shard_N = [index.samples[position].shard for position in positions]
    order = WindowOrder(shard_N=np.array(shard_N), window=1, global_batch=BATCH, seed=SEED)
    return ShardSchedule(index=index, positions=positions, order=order, topology=topology or Topology())


def loader_of(place: ShardLocation, index: ShardIndex, workers: int) -> Loader:
    """Return the loader that a training has."""
    positions = index.outside_folds([0])
    order = ExactOrder(count=len(positions), global_batch=BATCH, seed=SEED)
    settings = {"image_size": 32, "transforms": (), "workers": workers, "prefetch": 2}
    return build_loader(place, index, positions, order, Topology(), **settings)


if __name__ == "__main__":
    call = Call.read()
    os.environ["NO_PROXY"] = "127.0.0.1"
    name, folder, rest = call.case.split(" ", 2)
    cases = {case.__name__: case for case in (everyone, holder, ahead, closed, orphan, batches)}
    call.answer(cases[name](rest, load_index(Path(folder)), call))
