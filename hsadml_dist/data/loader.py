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
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hsadml_dist.config import Recipe
from hsadml_dist.data.fused_augmentation import FusedAugmentation
from hsadml_dist.data.index import ShardIndex, apply_label_setting
from hsadml_dist.data.order import ExactOrder, Order, SampleRef, WindowOrder, sample_seed
from hsadml_dist.data.prepared_cache import PreparedImages, open_prepared_cache
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.remote import open_shard_index
from hsadml_dist.data.shard_cache import ShardCache, ShardLocation, train_shard_location
from hsadml_dist.data.shard_prefetch import ShardPrefetcher, ShardSchedule
from hsadml_dist.data.transforms import Augmentation, Preprocessing
from hsadml_dist.distributed.topology import Topology, allowed_world_sizes
from hsadml_dist.errors import ConfigError, DataError, Fault, WorkerLostError
from hsadml_dist.process import setup_helper_process

LONGEST_TEMPORARY = 58
"""Letters of a temporary folder's path that leave room for a Unix socket's in the 107 that the kernel allows."""
PAUSE_SECONDS = 0.05
"""How often a rank that waits for a batch looks whether it was asked to stop."""
LIKELY: Mapping[int | None, str] = {
    -signal.SIGKILL: "; for want of memory? fewer data.workers or a smaller data.prefetch need less",
    -signal.SIGBUS: "; for want of shared memory? see df /dev/shm",
}
"""What a worker's exit code hints at."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A rank's part of a step's batch.

    Attributes:
        image: (B, 1, H, W), fp32.
        label: (B,), int64.
        keys: The B sample keys.
    """

    image: torch.Tensor
    label: torch.Tensor
    keys: tuple[str, ...]

    def microbatches(self, count: int) -> list[Batch]:
        """Return the batch cut into ``count`` consecutive parts, for accumulation; sizes differ by at most one."""
        size = len(self.keys)
        cuts = [(size * i // count, size * (i + 1) // count) for i in range(count)]
        return [Batch(image=self.image[a:b], label=self.label[a:b], keys=self.keys[a:b]) for a, b in cuts]


class ImageSource(Protocol):
    """Where prepared images come from.

    Attributes:
        index: The index that positions refer to.
    """

    index: ShardIndex

    def image(self, position: int) -> torch.Tensor:
        """Return the prepared image (1, H, W), fp32, at ``position``."""


class BatchAugmentation(Protocol):
    """The random part of the input."""

    def batch(self, images: Sequence[torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Augment B images (1, H, W), fp32, each with its seed; returns (B, 1, H, W), fp32."""


class TrainingSamples(Dataset[Batch | DataError]):
    """Augmented training samples, a batch of tickets at a time; or the fault of the first that cannot be read."""

    def __init__(self, images: ImageSource, positions: Sequence[int], augment: BatchAugmentation, seed: int) -> None:
        self._images, self._positions, self._augment, self._seed = images, positions, augment, seed

    def __getitem__(self, ticket: SampleRef) -> Batch | DataError:
        return self.__getitems__([ticket])

    def __getitems__(self, tickets: Sequence[SampleRef]) -> Batch | DataError:
        """Return the batch; PyTorch's loader asks for a whole one by this name."""
        # Returned, since what a worker raises, PyTorch raises anew with the worker's traceback as its text.
        try:
            return self._batch(tickets)
        except DataError as fault:
            return fault

    def _batch(self, tickets: Sequence[SampleRef]) -> Batch:
        positions = [self._positions[place] for _, place in tickets]
        rows = [self._images.index.samples[position] for position in positions]
        seeds = [sample_seed(self._seed, epoch, row.key) for (epoch, _), row in zip(tickets, rows, strict=True)]
        return Batch(
            image=self._augment.batch([self._images.image(position) for position in positions], seeds),
            label=torch.tensor([row.label for row in rows], dtype=torch.int64),
            keys=tuple(row.key for row in rows),
        )


class StepSampler(Sampler[list[SampleRef]]):
    """Yields this rank's tickets of each step; without steps until :meth:`span` is called."""

    def __init__(self, order: Order, topology: Topology) -> None:
        self._order, self._topology = order, topology
        self._steps = range(0)

    def set_steps(self, first: int, last: int) -> None:
        """Set the steps to come, both ends included."""
        self._steps = range(first, last + 1)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        mine = self._topology.rank_range(self._order.global_batch)
        for step in self._steps:
            yield self._order.sample_refs(step)[mine.start : mine.stop]


class Loader:
    """Delivers this rank's batch of one step after another.

    Attributes:
        threads_at_fork: Threads that this process had when its workers were forked; 1 is right.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        sampler: StepSampler,
        workers: int,
        prefetch: int,
        stager: ShardPrefetcher | None = None,
    ) -> None:
        self._sampler, self._stager, self._step = sampler, stager, 0
        self._scratch = _scratch_folder() if workers else None
        self._loader = DataLoader(
            samples,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            multiprocessing_context="fork" if workers else None,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            worker_init_fn=functools.partial(_settle, self._scratch),
        )
        self.threads_at_fork = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
        before = set(multiprocessing.active_children())
        # A first pass over no steps forks the workers now; the later pass finds them ready.
        with _own_child_handler():
            self._batches: Iterator[Batch | DataError] = iter(self._loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in before]
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=1)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def start(self, first: int, last: int) -> None:
        """Begin to prepare steps ``first`` to ``last``, both included."""
        if self._stager is not None:
            self._stager.start(first, last)
        self._step = first
        self._sampler.set_steps(first, last)
        self._batches = iter(self._loader)
        if self._workers:
            threading.Thread(target=self._pull, name="batches", daemon=True).start()

    def next(self, interrupted: Callable[[], bool]) -> Batch | None:
        """Return the next step's batch, or None if ``interrupted`` became true while it was not there yet.

        Raises:
            DataError: A sample cannot be read.
            WorkerLostError: A worker died.
        """
        item = self._await(interrupted) if self._workers else self._prepare(interrupted)
        if isinstance(item, BaseException):
            self._miss_none()  # a worker's death is told as such, not as what PyTorch makes of it
            raise item
        return item

    def close(self) -> None:
        """Kill the workers and what copies shards, whatever they wait for."""
        if self._stager is not None:
            self._stager.close()
        if not self._workers:
            return
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _prepare(self, interrupted: Callable[[], bool]) -> Batch | DataError | None:
        if self._stager is not None and not self._stager.wait_for_step(self._step, interrupted):
            return None
        self._step += 1
        with single_threaded():
            return next(self._batches)

    def _await(self, interrupted: Callable[[], bool]) -> Batch | BaseException | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=PAUSE_SECONDS)
            if interrupted():
                return None
            self._miss_none()

    def _miss_none(self) -> None:
        for worker in self._workers:
            if not worker.is_alive():
                raise WorkerLostError(_how_it_ended(worker.pid, worker.exitcode))

    def _pull(self) -> None:
        try:
            for batch in self._batches:
                self._ready.put(batch)
        except Exception as fault:  # noqa: BLE001  handed over to the thread that asks for the batch
            self._ready.put(fault)


def build_loader(
    place: ShardLocation,
    index: ShardIndex,
    positions: Sequence[int],
    order: Order,
    topology: Topology,
    *,
    image_size: int,
    transforms: Sequence[dict[str, Any]] | None,
    workers: int,
    prefetch: int,
    cache: Path | None = None,
    augmentation: str = "monai",
) -> Loader:
    """Return a rank's loader over the training samples; forks its workers at once.

    Raises:
        ConfigError: A transform that MONAI does not have, or with arguments that it refuses, or that cannot be fused;
            or a cache that cannot be written.
    """
    prepare = Preprocessing(image_size)
    store = None if cache is None else open_prepared_cache(cache, index, prepare)
    images = PreparedImages(ShardReader(place, index), prepare, store)
    augment = FusedAugmentation(transforms) if augmentation == "fused" else Augmentation(transforms)
    samples = TrainingSamples(images, positions, augment, order.seed)
    need = ShardSchedule(index=index, positions=positions, order=order, topology=topology)
    stager = ShardPrefetcher(place, need) if isinstance(place, ShardCache) else None
    return Loader(samples, StepSampler(order, topology), workers, prefetch, stager)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Prepare images with one thread, as workers do: sums over large images round differently with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _own_child_handler() -> Iterator[None]:
    """Keep this process's handler for a child's death: PyTorch's raises wherever the main thread happens to be."""
    own = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, own)


def _how_it_ended(pid: int | None, code: int | None) -> str:
    """Return one line about a worker's end."""
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return f"loader worker {pid} {how}{LIKELY.get(code, '')}"


def _as_it_is(batch: Any) -> Any:
    return batch


def _scratch_folder() -> str:
    """Return a new folder for what workers leave behind when they are killed: sockets that batches pass through."""
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="hsadml-", dir=usual if len(usual) <= LONGEST_TEMPORARY else "/tmp")


def _settle(scratch: str | None, worker: int) -> None:
    """Make a fresh worker deaf to notices and mortal with its parent, with a place of its own for temporary files."""
    tempfile.tempdir = scratch
    setup_helper_process()


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """What a training reads.

    Attributes:
        index: The shards' index, with the labels that the network learns.
        order: Which samples each step takes.
        loader: This rank's batches.
        total_steps: Steps of the whole training.
    """

    index: ShardIndex
    order: Order
    loader: Loader
    total_steps: int


def held_out_folds(recipe: Recipe) -> tuple[int, ...]:
    """Return the folds that training never reads."""
    folds = (recipe.data.fold, recipe.data.val_fold)
    return tuple(fold for fold in folds if fold is not None)


def build_train_data(recipe: Recipe, topology: Topology) -> TrainData:
    """Open the training input and fork the loader's workers.

    To be called before any thread, process group or device context exists.

    Raises:
        DataError: The shards are missing, hold no such fold, do not have the labels to learn, or find no room.
        ConfigError: The batch cannot be cut evenly, or a transform does not exist.
    """
    check_global_batch(recipe, topology.world_size)
    place = train_shard_location(recipe.data.shards, recipe.data.stage)
    index = apply_label_setting(open_shard_index(recipe.data.shards, fresh=False), recipe.data)
    positions = index.outside_folds(held_out_folds(recipe))
    if not positions:
        raise DataError(f"{place}: no training samples are left outside folds {held_out_folds(recipe)}")
    order = build_order(recipe, index, positions)
    steps = recipe.train.steps if recipe.train.steps is not None else order.steps_for(recipe.train.epochs or 0)
    if isinstance(place, ShardCache):
        place.require_free_space(
            ShardSchedule(index=index, positions=positions, order=order, topology=topology).training_shards(steps)
        )
    loader = build_loader(
        place,
        index,
        positions,
        order,
        topology,
        image_size=recipe.data.image_size,
        transforms=recipe.data.transforms,
        workers=recipe.data.workers,
        prefetch=recipe.data.prefetch,
        cache=None if recipe.data.cache is None else Path(os.path.expandvars(recipe.data.cache)),
        augmentation=recipe.data.augmentation,
    )
    return TrainData(index=index, order=order, loader=loader, total_steps=steps)


def build_order(recipe: Recipe, index: ShardIndex, positions: Sequence[int]) -> Order:
    """Return the order in which the recipe takes the training samples, which stand at ``positions`` of the index."""
    batch, seed = recipe.train.global_batch, recipe.train.seed
    if recipe.data.order == "exact":
        return ExactOrder(count=len(positions), global_batch=batch, seed=seed)
    shard_N = np.array([index.samples[position].shard for position in positions], dtype=np.int64)
    return WindowOrder(shard_N=shard_N, window=recipe.data.window, global_batch=batch, seed=seed)


def check_global_batch(recipe: Recipe, world_size: int) -> None:
    """Refuse a number of ranks that does not divide the global batch.

    Raises:
        ConfigError: It does not.
    """
    batch = recipe.train.global_batch
    if batch % world_size == 0:
        return
    allowed = ", ".join(map(str, allowed_world_sizes(batch, max(world_size, batch))))
    problem = f"{batch} samples cannot be shared evenly by {world_size} ranks; numbers of ranks that can: {allowed}"
    raise ConfigError([Fault(where="recipe", key="train.global_batch", problem=problem)])
