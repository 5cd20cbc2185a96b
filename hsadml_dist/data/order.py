"""Which samples each step takes: a pure function of (seed, epoch), free of state, ranks and workers.

All epochs stand one after another in one endless line of tickets; step s, from 1, takes tickets ``[(s-1)B, sB)`` of it,
so a step may end one epoch and begin the next, and no sample of any epoch is dropped or doubled.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from hsadml_dist.hashing import hashed, key_of

Ticket = tuple[int, int]
"""(epoch from 0, place among the training samples)."""


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of ``range(count)``, int64, that depends on the arguments only.

    Places are sorted by a keyed 64-bit hash, so the order is the same under every version of NumPy.
    """
    hashes = hashed(np.arange(count, dtype=np.uint64), key_of(f"order {seed} {epoch}"))
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


@dataclass(frozen=True, kw_only=True)
class ExactOrder:
    """The order of a run.

    Attributes:
        count: Number of training samples.
        global_batch: Samples a step over all ranks, B.
        seed: The run's seed.
    """

    count: int
    global_batch: int
    seed: int

    def tickets(self, step: int) -> list[Ticket]:
        """Return the B tickets of ``step`` (from 1), in global order."""
        first = (step - 1) * self.global_batch
        return [self._ticket(place) for place in range(first, first + self.global_batch)]

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, in which ``step`` begins."""
        return (step - 1) * self.global_batch // self.count

    def steps_for(self, epochs: int) -> int:
        """Return the number of steps that cover ``epochs`` passes."""
        return -(-epochs * self.count // self.global_batch)

    def _ticket(self, place: int) -> Ticket:
        epoch, rest = divmod(place, self.count)
        return epoch, int(epoch_order(self.count, self.seed, epoch)[rest])


def sample_seed(seed: int, epoch: int, key: str) -> int:
    """Return the augmentation's seed of one sample in one epoch, below 2**32."""
    text = f"augment {seed} {epoch} {key}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of what a rank draws within a step (dropout), below 2**63."""
    return key_of(f"step {seed} {step} {rank}") >> 1
