"""Loaders in a process of one thread, as a rank is when it forks its workers; one case a start."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hsadml_dist.data.prepared_cache import PreparedImages
from rank_script import Call

from hsadml_dist.data.index import load_index
from hsadml_dist.data.loader import Loader, StepSampler, TrainingSamples, build_loader
from hsadml_dist.data.order import ExactOrder
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import DataError, WorkerLostError

BATCH, STEPS = 12, 7
"""The tiny shards' training folds are passed over more than twice."""


class SleepingReader(ShardReader):
    """Never comes back from a read of its second batch on."""

    calls = 0

    def image(self, position: int) -> Any:
        """Sleep after the first batch."""
        self.calls += 1
        if self.calls > BATCH:
            time.sleep(600)
        return super().image(position)


def bytes_of_steps(shards: Path, call: Call) -> dict[str, Any]:
    """Return what 0, 1 and 2 workers deliver, and what two ranks do."""
    loaders = {workers: open_loader(shards, workers) for workers in (0, 1, 2)}
    late, large = open_loader(shards, 1), open_loader(shards, 1, size=256)
    torch.set_num_threads(2)  # as a rank does after the fork: what it prepares by itself must still be the same
    answer: dict[str, Any] = {"threads": [loader.threads_at_fork for loader in loaders.values()], "workers": {}}
    for workers, loader in loaders.items():
        answer["workers"][workers] = deliver(loader, 1, STEPS)
        loader.close()
    answer["late"] = deliver(late, 5, STEPS)
    late.close()
    answer["large"] = [deliver(loader, 1, 1) for loader in (open_loader(shards, 0, size=256), large)]
    large.close()
    pairs = [open_loader(shards, 0, Topology(rank=rank, world_size=2)) for rank in range(2)]
    answer["pair"] = [deliver(loader, 1, STEPS) for loader in pairs]
    return answer


def cached(shards: Path, call: Call) -> dict[str, Any]:
    """Return what 0, 1 and 2 workers deliver without a cache, with an empty one, and with a filled one."""
    folder = call.folder / "new" / "cache"
    loaders = {}
    for augmentation in ("monai", "fused"):
        for state, workers in itertools.product(("none", "cold", "warm"), (0, 1, 2)):
            cache = folder / f"{augmentation} {workers}" if state != "none" else None
            loader = open_loader(shards, workers, cache=cache, augmentation=augmentation)
            loaders[f"{augmentation} {state} {workers}"] = loader
    places = [Topology(rank=rank, world_size=2) for rank in range(2)]
    shared = [open_loader(shards, 2, place, cache=folder / "shared") for place in places]
    answer: dict[str, Any] = {}
    for case, loader in loaders.items():
        answer[case] = deliver(loader, 1, STEPS)
        loader.close()
    for loader in shared:
        loader.start(1, STEPS)
    answer["shared"] = [fingerprints(loader, STEPS) for loader in shared]
    for loader in shared:
        loader.close()
    return answer


def notices(shards: Path, call: Call) -> dict[str, Any]:
    """Return whether workers go on after every notice, and what is left of them after close."""
    tempfile.tempdir = str(call.folder)  # too long for a socket's path
    loader = open_loader(shards, 2)
    loader.start(1, STEPS)
    loader.next(never)
    for pid in loader.worker_pids:
        for notice in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            os.kill(pid, notice)
    time.sleep(0.2)
    states = [state_of(pid) for pid in loader.worker_pids]
    later = [loader.next(never) for _ in range(STEPS - 1)]
    pids, began = loader.worker_pids, time.monotonic()
    used = len(os.listdir(loader._scratch))
    loader.close()
    return {
        "files": [used, os.path.exists(loader._scratch)],
        "states": states,
        "keys": [len(batch.keys) for batch in later],
        "left": [state_of(pid) for pid in pids],
        "seconds": time.monotonic() - began,
    }


def asleep(shards: Path, call: Call) -> dict[str, Any]:
    """Return how waiting and closing go while the worker sleeps in a read."""
    loader = plain_loader(shards, SleepingReader, workers=1)
    loader.start(1, STEPS)
    first = loader.next(never)
    began = time.monotonic()
    second = loader.next(lambda: time.monotonic() > began + 0.2)
    waited, closing = time.monotonic() - began, time.monotonic()
    pids = loader.worker_pids
    loader.close()
    seconds = time.monotonic() - closing
    return {
        "first": len(first.keys),
        "second": second,
        "waited": waited,
        "close": seconds,
        "left": [state_of(pid) for pid in pids],
    }


def damaged(shards: Path, call: Call) -> list[str]:
    """Return what is said of a damaged sample, without and with workers."""
    said = []
    for workers in (0, 2):
        loader = plain_loader(shards, ShardReader, workers=workers)
        loader.start(1, STEPS)
        try:
            for _ in range(STEPS):
                loader.next(never)
        except DataError as fault:
            said.append(str(fault))
        loader.close()
    return said


def lost(shards: Path, call: Call) -> list[list[str]]:
    """Return what is said when a worker that is waited for is killed, by want of memory and by a crash."""
    said = []
    for notice in (signal.SIGKILL, signal.SIGBUS):
        loader = plain_loader(shards, SleepingReader, workers=2)
        loader.start(1, STEPS)
        for _ in loader.worker_pids:
            loader.next(never)
        pid = loader.worker_pids[-1]
        os.kill(pid, notice)
        time.sleep(0.2)  # PyTorch's handler would raise here
        try:
            loader.next(never)
        except WorkerLostError as fault:
            said.append([str(pid), str(fault)])
        loader.close()
    return said


def orphans(shards: Path, call: Call) -> None:
    """Leave the workers' ids behind and die at once, in the middle of the work."""
    loader = plain_loader(shards, SleepingReader, workers=2)
    loader.start(1, STEPS)
    loader.next(never)
    (call.folder / "workers").write_text(" ".join(map(str, loader.worker_pids)))
    os.kill(os.getpid(), signal.SIGKILL)


def open_loader(
    shards: Path,
    workers: int,
    topology: Topology | None = None,
    size: int = 32,
    cache: Path | None = None,
    augmentation: str = "monai",
) -> Loader:
    """Return the loader that a training has."""
    index = load_index(shards)
    positions = index.outside_folds([0])
    return build_loader(
        shards,
        index,
        positions,
        ExactOrder(count=len(positions), global_batch=BATCH, seed=1),
        topology or Topology(),
        image_size=size,
        transforms=None,
        workers=workers,
        prefetch=2,
        cache=cache,
        augmentation=augmentation,
    )


def plain_loader(shards: Path, reader: type[ShardReader], workers: int) -> Loader:
    """Return a loader without transforms."""
    index = load_index(shards)
    order = ExactOrder(count=len(index), global_batch=BATCH, seed=1)
    images = PreparedImages(reader(shards, index), as_tensor, None)  # type: ignore[arg-type]
    samples = TrainingSamples(images, range(len(index)), Plain(), 1)
    return Loader(samples, StepSampler(order, Topology()), workers, 1)


def as_tensor(image: Any) -> torch.Tensor:
    """Stand in for the preparation."""
    return torch.from_numpy(image.astype("float32"))[None]


class Plain:
    """Stands in for the augmentation."""

    def batch(self, images: Sequence[torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Put the images together."""
        return torch.stack(list(images))


def deliver(loader: Loader, first: int, last: int) -> list[tuple[str, list[int], tuple[str, ...]]]:
    """Return (SHA-256 of the images, labels, keys) of each step."""
    loader.start(first, last)
    return fingerprints(loader, last + 1 - first)


def fingerprints(loader: Loader, count: int) -> list[tuple[str, list[int], tuple[str, ...]]]:
    """Return the same of the next ``count`` steps."""
    batches = [loader.next(never) for _ in range(count)]
    return [(hashlib.sha256(b.image.numpy().tobytes()).hexdigest(), b.label.tolist(), b.keys) for b in batches]


def never() -> bool:
    """No notice has come."""
    return False


def state_of(pid: int) -> str:
    """Return a process's state letter, or nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


if __name__ == "__main__":
    call = Call.read()
    name, _, shards = call.case.partition(" ")
    cases = {case.__name__: case for case in (bytes_of_steps, cached, notices, asleep, damaged, lost, orphans)}
    call.answer(cases[name](Path(shards), call))
