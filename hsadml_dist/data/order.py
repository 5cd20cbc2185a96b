"""The samples and shards of each step: a pure function of (seed, epoch), independent of workers.

All epochs are concatenated to one endless sequence of sample references; step s, counted from 1, takes the references
``[(s-1)B, sB)``. A step may end one epoch and begin the next, and no sample of any epoch is dropped or repeated.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hsadml_dist.data.index import ShardFile, ShardIndex
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.hashing import hash_key, splitmix64

SampleRef = tuple[int, int]
"""(epoch from 0, index among the training samples)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The samples that each step of a run takes; subclasses define the permutation of an epoch.

    Attributes:
        count: Number of training samples, N.
        global_batch: Samples per step over all ranks, B.
        seed: Seed of the run.
    """

    count: int
    global_batch: int
    seed: int

    def sample_refs(self, step: int) -> list[SampleRef]:
        """Return the B references of ``step`` (from 1), in global order."""
        first = (step - 1) * self.global_batch
        places = (divmod(place, self.count) for place in range(first, first + self.global_batch))
        return [(epoch, int(self._permutation(epoch)[rest])) for epoch, rest in places]

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, in which ``step`` begins."""
        return (step - 1) * self.global_batch // self.count

    def _permutation(self, epoch: int) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ExactOrder(Order):
    """All samples, in another permutation in each epoch."""

    def _permutation(self, epoch: int) -> np.ndarray:
        return epoch_order(self.count, self.seed, epoch)


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowOrder(Order):
    """The samples of a few shards at a time; see :func:`window_order`.

    Attributes:
        shard_N: Shard of each training sample, (N,), int64.
        window: Shards per window.
    """

    shard_N: np.ndarray
    window: int
    count: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.shard_N))

    def _permutation(self, epoch: int) -> np.ndarray:
        return _cached_window_order(self, epoch)


@dataclass(frozen=True, kw_only=True)
class ShardSchedule:
    """The shards that a training reads, and when.

    Attributes:
        index: The index of the shards.
        positions: Positions of the training samples in it.
        order: The samples of each step.
        topology: This rank's place.
    """

    index: ShardIndex
    positions: Sequence[int]
    order: Order
    topology: Topology

    def step_shards(self, step: int) -> list[ShardFile]:
        """Return the shards of this rank's part of a step, each once."""
        return self._files(step, self.topology.rank_range(self.order.global_batch))

    def node_shards(self, first: int, last: int) -> Iterator[ShardFile]:
        """Yield the shards that the node's ranks read in steps ``first`` to ``last``, each once, in order of need."""
        seen: set[str] = set()
        every = len({self.index.samples[position].shard for position in self.positions})
        # The ranks of a node are consecutive.
        batch, world_size = self.order.global_batch, self.topology.world_size
        low = self.topology.rank - self.topology.local_rank
        high = min(low + self.topology.local_world_size, world_size)
        part = range(batch * low // world_size, batch * high // world_size)
        for step in range(first, last + 1):
            for file in self._files(step, part):
                if file.name not in seen:
                    seen.add(file.name)
                    yield file
            if len(seen) == every:
                return

    def training_shards(self, steps: int) -> list[ShardFile]:
        """Return the shards that a training of ``steps`` steps reads on all nodes together."""
        if self.order.global_batch * steps >= self.order.count:
            shards = sorted({self._shard(place) for place in range(self.order.count)})
            return [self.index.shards[shard] for shard in shards]
        batch = range(self.order.global_batch)
        files = {file.name: file for step in range(1, steps + 1) for file in self._files(step, batch)}
        return list(files.values())

    def _files(self, step: int, part: range) -> list[ShardFile]:
        refs = self.order.sample_refs(step)[part.start : part.stop]
        return [self.index.shards[shard] for shard in dict.fromkeys(self._shard(place) for _, place in refs)]

    def _shard(self, place: int) -> int:
        return self.index.samples[self.positions[place]].shard


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of ``range(count)``, int64, that depends on the arguments only.

    The samples are sorted by a keyed 64-bit hash, so the order is the same under every version of NumPy.
    """
    hashes = splitmix64(np.arange(count, dtype=np.uint64), hash_key(f"order {seed} {epoch}"))
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def window_order(shard_N: np.ndarray, window: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation (N,), int64, of N samples that passes over their shards once.

    The shards are permuted and cut into windows, and the samples inside each window are permuted. A reader that follows
    the order therefore needs the shards of one window at a time, or of two where a batch spans a boundary.

    Args:
        shard_N: Shard of each sample, int64.
        window: Shards per window; only shards that hold any of the samples count.
        seed: Seed of the run.
        epoch: The epoch, from 0.
    """
    shards, place_N = np.unique(shard_N, return_inverse=True)
    turn_S = np.empty(len(shards), dtype=np.int64)
    hashes_S = splitmix64(shards.astype(np.uint64), hash_key(f"window shards {seed} {epoch}"))
    turn_S[np.argsort(hashes_S, kind="stable")] = np.arange(len(shards))
    hashes_N = splitmix64(np.arange(len(shard_N), dtype=np.uint64), hash_key(f"window samples {seed} {epoch}"))
    return np.lexsort((hashes_N, turn_S[place_N] // window)).astype(np.int64)


@functools.lru_cache(maxsize=4)
def _cached_window_order(order: WindowOrder, epoch: int) -> np.ndarray:
    permutation = window_order(order.shard_N, order.window, order.seed, epoch)
    permutation.flags.writeable = False
    return permutation


def sample_seed(seed: int, epoch: int, key: str) -> int:
    """Return the augmentation seed of one sample in one epoch, below 2**32."""
    text = f"augment {seed} {epoch} {key}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a rank's random numbers within a step (dropout), below 2**63."""
    return hash_key(f"step {seed} {step} {rank}") >> 1
