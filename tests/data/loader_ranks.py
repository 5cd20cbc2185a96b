"""Loaders in a single-threaded process, as a rank is when it forks its workers; one case per start."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rank_script import RankArguments

from hsadml_dist.config.recipe import DataConfig
from hsadml_dist.data.index import load_index
from hsadml_dist.data.loader import Loader, StepSampler, TrainingSamples, build_loader
from hsadml_dist.data.order import ExactOrder, ShardSchedule
from hsadml_dist.data.reader import PreparedImages, ShardReader
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import DataError, WorkerLostError

BATCH, STEPS = 12, 7
"""More than two passes over the training folds of the tiny shards."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class BlockingReader(ShardReader):
    """Blocks in a read from its second batch on."""

    calls = 0

    def image(self, position: int) -> Any:
        """Block after the first batch."""
        self.calls += 1
        if self.calls > BATCH:
            time.sleep(600)
        return super().image(position)


def bytes_of_steps(shards: Path, arguments: RankArguments) -> dict[str, Any]:
    """Return the batches of 0, 1 and 2 workers, and of two ranks."""
    loaders = {workers: open_loader(shards, workers) for workers in (0, 1, 2)}
    late, large = open_loader(shards, 1), open_loader(shards, 1, image_size=256)
    torch.set_num_threads(2)  # as a rank does after the fork: what it prepares itself must still be the same
    threads = [loader.threads_at_fork for loader in (*loaders.values(), late, large)]
    answer: dict[str, Any] = {"threads": threads, "workers": {}}
    for workers, loader in loaders.items():
        answer["workers"][workers] = deliver(loader, 1, STEPS)
        loader.close()
    answer["late"] = deliver(late, 5, STEPS)
    late.close()
    answer["large"] = [deliver(loader, 1, 1) for loader in (open_loader(shards, 0, image_size=256), large)]
    large.close()
    pairs = [open_loader(shards, 0, Topology(rank=rank, world_size=2)) for rank in range(2)]
    answer["pair"] = [deliver(loader, 1, STEPS) for loader in pairs]
    return answer


def cached(shards: Path, arguments: RankArguments) -> dict[str, Any]:
    """Return the batches of 0, 1 and 2 workers without a cache, with an empty one, and with a filled one."""
    folder = arguments.folder / "new" / "cache"
    loaders = {}
    for augmentation in ("monai", "fused"):
        for state, workers in itertools.product(("none", "cold", "warm"), (0, 1, 2)):
            cache = str(folder / f"{augmentation} {workers}") if state != "none" else None
            loader = open_loader(shards, workers, cache=cache, augmentation=augmentation)
            loaders[f"{augmentation} {state} {workers}"] = loader
    places = [Topology(rank=rank, world_size=2) for rank in range(2)]
    shared = [open_loader(shards, 2, place, cache=str(folder / "shared")) for place in places]
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


def generators(shards: Path, arguments: RankArguments) -> list[bool]:
    """Return for each augmentation whether the draws of this process are the same with batches between them."""
    same = []
    for augmentation in ("monai", "fused"):
        loader = open_loader(shards, 0, augmentation=augmentation)
        loader.start(1, STEPS)
        draws = []
        for batches in (0, STEPS):
            random.seed(3)
            np.random.seed(3)
            torch.manual_seed(3)
            for _ in range(batches):
                loader.next(never)
            draws.append((random.random(), float(np.random.random()), torch.rand(5).tolist()))
        same.append(draws[0] == draws[1])
    return same


def stop_signals(shards: Path, arguments: RankArguments) -> dict[str, Any]:
    """Return whether workers continue after every stop signal, and what is left of them after close."""
    tempfile.tempdir = str(arguments.folder)  # too long for the path of a socket
    scratch = record_scratch_folders()
    loader = open_loader(shards, 2)
    loader.start(1, STEPS)
    loader.next(never)
    pids = loader.worker_pids
    for pid, number in itertools.product(pids, STOP_SIGNALS):
        os.kill(pid, number)
    later = [loader.next(never) for _ in range(STEPS - 1)]
    states = [state_of(pid) for pid in pids]
    sockets = len(os.listdir(scratch[0]))
    loader.close()
    return {
        "sockets": sockets,
        "scratch left": [path for path in scratch if os.path.exists(path)],
        "states": states,
        "sizes": [len(batch.keys) for batch in later],
        "left": [state_of(pid) for pid in pids],
    }


def record_scratch_folders() -> list[str]:
    """Return a list of the loaders' temporary folders, which grows as they are made."""
    made: list[str] = []
    mkdtemp = tempfile.mkdtemp

    def record(*arguments: Any, prefix: str | None = None, **keywords: Any) -> str:
        path = mkdtemp(*arguments, prefix=prefix, **keywords)
        if prefix == "hsadml-":
            made.append(path)
        return path

    tempfile.mkdtemp = record
    return made


def blocked(shards: Path, arguments: RankArguments) -> dict[str, Any]:
    """Return how waiting and closing end while the worker is blocked in a read."""
    loader = plain_loader(shards, BlockingReader, workers=1)
    loader.start(1, STEPS)
    first = loader.next(never)
    polls = itertools.count()
    second = loader.next(lambda: next(polls) > 3)
    pids = loader.worker_pids
    loader.close()
    return {"first": len(first.keys), "second": second, "left": [state_of(pid) for pid in pids]}


def damaged(shards: Path, arguments: RankArguments) -> list[str]:
    """Return the errors of a damaged sample, without and with workers."""
    errors = []
    for workers in (0, 2):
        loader = plain_loader(shards, ShardReader, workers=workers)
        loader.start(1, STEPS)
        try:
            for _ in range(STEPS):
                loader.next(never)
        except DataError as error:
            errors.append(str(error))
        loader.close()
    return errors


def lost(shards: Path, arguments: RankArguments) -> list[list[str]]:
    """Return the errors when a worker that is waited for is killed, as for lack of memory and by a crash."""
    errors = []
    for number in (signal.SIGKILL, signal.SIGBUS):
        loader = plain_loader(shards, BlockingReader, workers=2)
        loader.start(1, STEPS)
        for _ in loader.worker_pids:
            loader.next(never)
        pid = loader.worker_pids[-1]
        os.kill(pid, number)
        time.sleep(0.2)  # PyTorch's handler would raise here
        try:
            loader.next(never)
        except WorkerLostError as error:
            errors.append([str(pid), str(error)])
        loader.close()
    return errors


def orphans(shards: Path, arguments: RankArguments) -> None:
    """Write down the workers' ids and die at once, in the middle of the work."""
    loader = plain_loader(shards, BlockingReader, workers=2)
    loader.start(1, STEPS)
    loader.next(never)
    (arguments.folder / "workers").write_text(" ".join(map(str, loader.worker_pids)))
    os.kill(os.getpid(), signal.SIGKILL)


def open_loader(shards: Path, workers: int, topology: Topology | None = None, **settings: Any) -> Loader:
    """Return the loader of a training outside fold 0."""
    index = load_index(shards)
    positions = index.outside_folds([0])
    order = ExactOrder(count=len(positions), global_batch=BATCH, seed=1)
    schedule = ShardSchedule(index=index, positions=positions, order=order, topology=topology or Topology())
    data = DataConfig(**{"shards": str(shards), "workers": workers, "image_size": 32} | settings)
    return build_loader(shards, schedule, data)


def plain_loader(shards: Path, reader: type[ShardReader], workers: int) -> Loader:
    """Return a loader without transforms."""
    index = load_index(shards)
    order = ExactOrder(count=len(index), global_batch=BATCH, seed=1)
    images = PreparedImages(reader(shards, index), as_tensor, None)  # type: ignore[arg-type]
    samples = TrainingSamples(images, range(len(index)), NoAugmentation(), 1)
    return Loader(samples, StepSampler(order, Topology()), workers, 1)


def as_tensor(image: Any) -> torch.Tensor:
    """Stand in for the preprocessing."""
    return torch.from_numpy(image.astype("float32"))[None]


class NoAugmentation:
    """Stands in for the augmentation."""

    def batch(self, images: Sequence[torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Stack the images."""
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
    """Return that no stop was requested."""
    return False


def state_of(pid: int) -> str:
    """Return a process's state letter, or nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


if __name__ == "__main__":
    arguments = RankArguments.read()
    name, _, shards = arguments.case.partition(" ")
    cases = (bytes_of_steps, cached, generators, stop_signals, blocked, damaged, lost, orphans)
    arguments.save_result({case.__name__: case for case in cases}[name](Path(shards), arguments))
