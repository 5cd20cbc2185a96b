"""Which samples each step takes: a pure function of (seed, epoch), free of state, ranks and workers.

All epochs stand one after another in one endless line of tickets; step s, from 1, takes tickets ``[(s-1)B, sB)`` of it,
so a step may end one epoch and begin the next, and no sample of any epoch is dropped or doubled.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hsadml_dist.hashing import hash_key, splitmix64

SampleRef = tuple[int, int]
"""(epoch from 0, place among the training samples)."""


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of ``range(count)``, int64, that depends on the arguments only.

    Places are sorted by a keyed 64-bit hash, so the order is the same under every version of NumPy.
    """
    hashes = splitmix64(np.arange(count, dtype=np.uint64), hash_key(f"order {seed} {epoch}"))
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def window_order(shard_N: np.ndarray, window: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation (N,), int64, of the places of N samples that passes over their shards once.

    The shards are permuted, ``window`` of them are taken at a time, and the samples inside each window are permuted:
    whoever follows the order needs the shards of one window at a time, of two where a batch straddles.

    Args:
        shard_N: The shard of each sample, int64.
        window: Shards in a window; only those count that hold any of the samples.
        seed: The run's seed.
        epoch: From 0.
    """
    shards, place_N = np.unique(shard_N, return_inverse=True)
    turn_S = np.empty(len(shards), dtype=np.int64)
    hashes_S = splitmix64(shards.astype(np.uint64), hash_key(f"window shards {seed} {epoch}"))
    turn_S[np.argsort(hashes_S, kind="stable")] = np.arange(len(shards))
    hashes_N = splitmix64(np.arange(len(shard_N), dtype=np.uint64), hash_key(f"window samples {seed} {epoch}"))
    return np.lexsort((hashes_N, turn_S[place_N] // window)).astype(np.int64)


class Order(Protocol):
    """Which samples each step of a run takes."""

    @property
    def count(self) -> int:
        """Number of training samples."""
        ...

    @property
    def global_batch(self) -> int:
        """Samples a step over all ranks, B."""
        ...

    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    def sample_refs(self, step: int) -> list[SampleRef]:
        """Return the B tickets of ``step`` (from 1), in global order."""
        ...

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, in which ``step`` begins."""
        ...

    def steps_for(self, epochs: int) -> int:
        """Return the number of steps that cover ``epochs`` passes."""
        ...


class _Line:
    """The arithmetic of the endless line, whatever permutes an epoch."""

    count: int
    global_batch: int

    def sample_refs(self, step: int) -> list[SampleRef]:
        """Return the B tickets of ``step`` (from 1), in global order."""
        first = (step - 1) * self.global_batch
        return [self._ticket(place) for place in range(first, first + self.global_batch)]

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, in which ``step`` begins."""
        return (step - 1) * self.global_batch // self.count

    def steps_for(self, epochs: int) -> int:
        """Return the number of steps that cover ``epochs`` passes."""
        return -(-epochs * self.count // self.global_batch)

    def _ticket(self, place: int) -> SampleRef:
        epoch, rest = divmod(place, self.count)
        return epoch, int(self._permutation(epoch)[rest])

    def _permutation(self, epoch: int) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ExactOrder(_Line):
    """All samples permuted anew each epoch.

    Attributes:
        count: Number of training samples.
        global_batch: Samples a step over all ranks, B.
        seed: The run's seed.
    """

    count: int
    global_batch: int
    seed: int

    def _permutation(self, epoch: int) -> np.ndarray:
        return epoch_order(self.count, self.seed, epoch)


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowOrder(_Line):
    """The samples of a few shards at a time; see :func:`window_order`.

    Attributes:
        shard_N: The shard of each training sample, (N,), int64.
        window: Shards in a window.
        count: Number of training samples, N.
        global_batch: Samples a step over all ranks, B.
        seed: The run's seed.
    """

    shard_N: np.ndarray
    window: int
    global_batch: int
    seed: int
    count: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.shard_N))

    def _permutation(self, epoch: int) -> np.ndarray:
        return _kept_window_order(self, epoch)


@functools.lru_cache(maxsize=4)
def _kept_window_order(order: WindowOrder, epoch: int) -> np.ndarray:
    permutation = window_order(order.shard_N, order.window, order.seed, epoch)
    permutation.flags.writeable = False
    return permutation


def sample_seed(seed: int, epoch: int, key: str) -> int:
    """Return the augmentation's seed of one sample in one epoch, below 2**32."""
    text = f"augment {seed} {epoch} {key}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of what a rank draws within a step (dropout), below 2**63."""
    return hash_key(f"step {seed} {step} {rank}") >> 1
