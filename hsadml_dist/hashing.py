"""Deterministic pseudo-random numbers: keyed hashes of integers that are the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np


def hash_key(text: str) -> int:
    """Return a key below 2**64 derived from ``text``."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def splitmix64(numbers: np.ndarray, key: int) -> np.ndarray:
    """Return the hashes (N,), uint64, of ``numbers`` (N,), uint64, under ``key``.

    Source: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
    """
    with np.errstate(over="ignore"):
        z = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
