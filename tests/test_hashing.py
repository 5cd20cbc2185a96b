import hashlib

import numpy as np

from hsadml_dist.hashing import hash_key, splitmix64

WORD = 2**64


def reference_splitmix64(number, key):
    """SplitMix64's finaliser in Python integers."""
    z = (number * 0x9E3779B97F4A7C15 + key) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def test_splitmix64_matches_integer_reference():
    numbers = [0, 1, 2, 10**9, 2**63 - 1, 2**63, WORD - 1]
    for key in (0, 1, 2**63, WORD - 1, hash_key("order 0 1")):
        found = splitmix64(np.array(numbers, dtype=np.uint64), key)
        assert found.dtype == np.uint64
        assert found.tolist() == [reference_splitmix64(number, key) for number in numbers]


def test_hash_key_depends_on_text_only():
    assert hash_key("order 0 1") == int.from_bytes(hashlib.blake2b(b"order 0 1", digest_size=8).digest(), "little")
    assert hash_key("order 0 1") != hash_key("order 0 2")
