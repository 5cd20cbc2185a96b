"""Load the training batches of a rank with forked worker processes.

Workers are forked before any thread, process group or device context exists. They know neither epoch nor step, ignore
the signals that stop a run, and die with their parent. :meth:`Loader.close` kills them by process id, because a worker
that waits for a read cannot answer a request to exit.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import queue
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hsadml_dist.config.recipe import DataConfig, TrainConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.data.fused_augmentation import FusedAugmentation
from hsadml_dist.data.index import ShardIndex, apply_label_setting
from hsadml_dist.data.order import ExactOrder, Order, SampleRef, ShardSchedule, WindowOrder, sample_seed
from hsadml_dist.data.reader import PreparedImages, ShardReader, open_prepared_cache
from hsadml_dist.data.remote import open_shard_index
from hsadml_dist.data.repeatability import check_repeatability
from hsadml_dist.data.shard_cache import ShardCache, ShardLocation, ShardPrefetcher, train_shard_location
from hsadml_dist.data.transforms import (
    Augmentation,
    Preprocessing,
    build_transforms,
    preserved_generators,
    single_threaded,
)
from hsadml_dist.distributed.topology import Topology, allowed_world_sizes
from hsadml_dist.errors import ConfigError, DataError, Fault, WorkerLostError
from hsadml_dist.process import setup_helper_process

MAX_SCRATCH_PATH = 58
"""Characters of a temporary folder's path that leave space for a Unix socket's within the kernel's limit of 107."""
CPU = torch.device("cpu")
POLL_SECONDS = 0.05
"""How often a rank that waits for a batch checks for a stop request."""
LIKELY_CAUSES: Mapping[int, str] = {
    -signal.SIGKILL: "; out of memory? fewer data.workers or a smaller data.prefetch need less",
    -signal.SIGBUS: "; out of shared memory? see df /dev/shm",
}
"""Likely cause by exit code of a worker."""


class TrainingSamples(Dataset[Batch | DataError]):
    """Augmented training samples, one batch of references at a time, or the error of a batch that cannot be read."""

    def __init__(
        self,
        images: PreparedImages,
        positions: Sequence[int],
        augment: Augmentation | FusedAugmentation,
        seed: int,
    ) -> None:
        self._images, self._positions, self._augment, self._seed = images, positions, augment, seed

    def __getitems__(self, refs: Sequence[SampleRef]) -> Batch | DataError:
        """Return a whole batch; PyTorch's loader calls this method by name."""
        positions = [self._positions[place] for _, place in refs]
        rows = [self._images.index.samples[position] for position in positions]
        seeds = [sample_seed(self._seed, epoch, row.key) for (epoch, _), row in zip(refs, rows, strict=True)]
        try:
            image = self._augment.batch([self._images.image(position) for position in positions], seeds)
        except DataError as error:
            # Returned, because PyTorch raises what a worker raises with the worker's traceback as its text.
            return error
        return Batch(
            image=image,
            label=torch.tensor([row.label for row in rows], dtype=torch.int64),
            keys=tuple(row.key for row in rows),
        )


class StepSampler(Sampler[list[SampleRef]]):
    """Yields this rank's sample references step by step; there are none before :meth:`set_steps`."""

    def __init__(self, order: Order, topology: Topology) -> None:
        self._order, self._topology = order, topology
        self._steps = range(0)

    def set_steps(self, first: int, last: int) -> None:
        """Set the steps to come, both ends included."""
        self._steps = range(first, last + 1)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        own = self._topology.rank_range(self._order.global_batch)
        for step in self._steps:
            yield self._order.sample_refs(step)[own.start : own.stop]


class Loader:
    """Delivers this rank's batch of one step after another.

    Attributes:
        threads_at_fork: Number of threads that this process had when it forked its workers; must be 1.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        sampler: StepSampler,
        workers: int,
        prefetch: int,
        prefetcher: ShardPrefetcher | None = None,
    ) -> None:
        self._sampler, self._prefetcher, self._step = sampler, prefetcher, 0
        self._scratch = _create_scratch_folder() if workers else None
        self._loader = DataLoader(
            samples,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=lambda batch: batch,
            multiprocessing_context="fork" if workers else None,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            worker_init_fn=functools.partial(_setup_worker, self._scratch),
        )
        self.threads_at_fork = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
        before = set(multiprocessing.active_children())
        # A first pass over no steps forks the workers now; the later pass finds them ready.
        with _keep_child_handler():
            self._batches: Iterator[Batch | DataError] = iter(self._loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in before]
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=1)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def start(self, first: int, last: int, device: torch.device = CPU) -> None:
        """Begin to prepare steps ``first`` to ``last``, both included; for a GPU, workers' batches are pinned."""
        if self._prefetcher is not None:
            self._prefetcher.start(first, last)
        self._step = first
        self._sampler.set_steps(first, last)
        self._batches = iter(self._loader)
        if self._workers:
            threading.Thread(target=self._pull, args=(device,), name="batches", daemon=True).start()

    def next(self, interrupted: Callable[[], bool]) -> Batch | None:
        """Return the batch of the next step, or None if ``interrupted`` became true before it was ready.

        Raises:
            DataError: A sample cannot be read.
            WorkerLostError: A worker died.
        """
        item = self._await(interrupted) if self._workers else self._prepare(interrupted)
        if isinstance(item, BaseException):
            self._check_workers()  # a worker's death is reported as such, not as the error PyTorch makes of it
            raise item
        return item

    def close(self) -> None:
        """Kill the workers and the process that copies shards, whatever they wait for."""
        if self._prefetcher is not None:
            self._prefetcher.close()
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _prepare(self, interrupted: Callable[[], bool]) -> Batch | DataError | None:
        if self._prefetcher is not None and not self._prefetcher.wait_for_step(self._step, interrupted):
            return None
        self._step += 1
        with single_threaded(), preserved_generators():
            return next(self._batches)

    def _await(self, interrupted: Callable[[], bool]) -> Batch | BaseException | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=POLL_SECONDS)
            if interrupted():
                return None
            self._check_workers()

    def _check_workers(self) -> None:
        for worker in self._workers:
            if not worker.is_alive():
                code = worker.exitcode or 0
                end = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise WorkerLostError(f"loader worker {worker.pid} {end}{LIKELY_CAUSES.get(code, '')}")

    def _pull(self, device: torch.device) -> None:
        pins = device.type == "cuda"
        try:
            if pins:
                torch.cuda.set_device(device)  # a new thread starts with the first GPU and would take memory on it
            for batch in self._batches:
                self._ready.put(batch.pin_memory() if pins and isinstance(batch, Batch) else batch)
        except Exception as error:  # noqa: BLE001  handed over to the thread that asks for the batch
            self._ready.put(error)


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """The input of a training.

    Attributes:
        index: The index of the shards, with the labels to learn.
        order: The samples of each step.
        loader: This rank's batches.
        total_steps: Number of steps of the whole training.
    """

    index: ShardIndex
    order: Order
    loader: Loader
    total_steps: int


def build_train_data(data: DataConfig, train: TrainConfig, topology: Topology) -> TrainData:
    """Open the training input and fork the workers of the loader.

    Call this before any thread, process group or device context exists.

    Raises:
        DataError: The shards are missing, lack the fold or the labels, or do not fit on the node's disk.
        ConfigError: The number of ranks does not divide the batch, or a transform is refused.
    """
    check_global_batch(train.global_batch, topology.world_size)
    location = train_shard_location(data.shards, data.stage)
    index = apply_label_setting(open_shard_index(data.shards, fresh=False), data)
    positions = index.outside_folds(data.held_out_folds)
    if not positions:
        raise DataError(f"{location}: no training samples are left outside folds {data.held_out_folds}")
    order = build_order(data, train, index, positions)
    steps = train.total_steps(len(positions))
    schedule = ShardSchedule(index=index, positions=positions, order=order, topology=topology)
    if isinstance(location, ShardCache):
        location.require_free_space(schedule.training_shards(steps))
    return TrainData(index=index, order=order, loader=build_loader(location, schedule, data), total_steps=steps)


def build_loader(location: ShardLocation, schedule: ShardSchedule, data: DataConfig) -> Loader:
    """Return a rank's loader over the training samples; forks its workers at once.

    Raises:
        ConfigError: See :func:`build_augmentation`, or the cache of prepared images cannot be written.
    """
    preprocess = Preprocessing(data.image_size)
    augment = build_augmentation(data)
    folder = None if data.cache is None else Path(os.path.expandvars(data.cache))
    cache = None if folder is None else open_prepared_cache(folder, schedule.index, preprocess)
    images = PreparedImages(ShardReader(location, schedule.index), preprocess, cache)
    samples = TrainingSamples(images, schedule.positions, augment, schedule.order.seed)
    prefetcher = ShardPrefetcher(location, schedule) if isinstance(location, ShardCache) else None
    sampler = StepSampler(schedule.order, schedule.topology)
    return Loader(samples, sampler, data.workers, data.prefetch, prefetcher)


def build_augmentation(data: DataConfig) -> Augmentation | FusedAugmentation:
    """Check the transforms of a recipe and return the augmentation that applies them.

    Raises:
        ConfigError: A transform is not allowed, fails, does not repeat its result or cannot be fused.
    """
    check_repeatability(functools.partial(build_transforms, data.transforms), data.image_size)
    return (FusedAugmentation if data.augmentation == "fused" else Augmentation)(data.transforms)


def build_order(data: DataConfig, train: TrainConfig, index: ShardIndex, positions: Sequence[int]) -> Order:
    """Return the order of the training samples, whose positions in the index are ``positions``."""
    if data.order == "exact":
        return ExactOrder(count=len(positions), global_batch=train.global_batch, seed=train.seed)
    shard_N = np.array([index.samples[position].shard for position in positions], dtype=np.int64)
    return WindowOrder(shard_N=shard_N, window=data.window, global_batch=train.global_batch, seed=train.seed)


def check_global_batch(global_batch: int, world_size: int) -> None:
    """Raise ConfigError unless the number of ranks divides the global batch."""
    if global_batch % world_size == 0:
        return
    allowed = ", ".join(map(str, allowed_world_sizes(global_batch)))
    problem = f"{global_batch} samples cannot be divided evenly among {world_size} ranks; allowed: {allowed} ranks"
    raise ConfigError([Fault(where="recipe", key="train.global_batch", problem=problem)])


@contextlib.contextmanager
def _keep_child_handler() -> Iterator[None]:
    """Keep this process's SIGCHLD handler: PyTorch's raises wherever the main thread happens to be."""
    own = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, own)


def _create_scratch_folder() -> str:
    """Create a folder for what killed workers leave behind: the sockets through which batches pass."""
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="hsadml-", dir=usual if len(usual) <= MAX_SCRATCH_PATH else "/tmp")


def _setup_worker(scratch: str | None, worker: int) -> None:
    """Prepare a fresh worker, whose temporary files go to ``scratch``."""
    tempfile.tempdir = scratch
    setup_helper_process()
