import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from hsadml_dist.data.order import ExactOrder, WindowOrder, epoch_order, sample_seed, step_seed, window_order
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.hashing import hash_key, splitmix64

GOLDEN_TEN = [2, 9, 4, 5, 0, 6, 3, 1, 8, 7]
GOLDEN_THOUSAND = "fa1c5ada33e7baaba3bf06ae347a51d07272557b682b19bd97cc68d5da530cea"
GOLDEN_STEP = [(0, 8), (0, 7), (1, 6), (1, 0)]
GOLDEN_WINDOWS = "16 18 14 19 15 1 12 2 13 0 17 11 23 24 20 21 22 33 7 34 3 6 10 4 9 8 5 29 27 31 25 26 28 32 30"
GOLDEN_SAMPLE_SEED = 1997615009
GOLDEN_STEP_SEED = 3447711302523178679


@pytest.mark.parametrize("count", [1, 2, 7, 100, 10_007])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_epoch_order_is_a_permutation(count, seed):
    for epoch in (0, 1, 1_000_000):
        assert np.array_equal(np.sort(epoch_order(count, seed, epoch)), np.arange(count))


def test_epoch_order_differs_between_seeds_and_epochs():
    orders = [epoch_order(1000, seed, epoch) for seed in range(4) for epoch in range(4)]
    agreements = [int((one == other).sum()) for place, one in enumerate(orders) for other in orders[:place]]
    assert max(agreements) < 12, "two random orders of 1000 agree in one place on average"


def test_epoch_order_is_uniform():
    places = np.mean([np.argsort(epoch_order(50, 0, epoch)) for epoch in range(2000)], axis=0)
    # The mean of 2000 uniform places in 0..49: 24.5, standard deviation 14.4 / sqrt(2000) = 0.32.
    assert np.abs(places - 24.5).max() < 5 * 0.32


def test_epoch_order_separates_neighbours():
    order = epoch_order(10_000, 0, 0)
    assert int((np.abs(np.diff(order)) == 1).sum()) < 12, "2 are expected by chance"


def test_exact_order_and_seeds_never_change():
    """Change only if the order of existing runs may change; then the checkpoint format must change too."""
    assert epoch_order(10, 0, 0).tolist() == GOLDEN_TEN
    assert hashlib.sha256(epoch_order(1000, 7, 3).astype("<i8").tobytes()).hexdigest() == GOLDEN_THOUSAND
    assert ExactOrder(count=10, global_batch=4, seed=0).sample_refs(3) == GOLDEN_STEP
    assert sample_seed(0, 0, "00ff00ff00ff00ff") == GOLDEN_SAMPLE_SEED
    assert step_seed(0, 1, 0) == GOLDEN_STEP_SEED


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (10, 5), (10, 25), (7, 3), (1, 4), (64, 64)])
def test_exact_order_takes_every_sample_once_per_epoch(count, batch):
    order = ExactOrder(count=count, global_batch=batch, seed=3)
    steps = 2 * count
    refs = [ticket for step in range(1, steps + 1) for ticket in order.sample_refs(step)]
    assert all(len(order.sample_refs(step)) == batch for step in range(1, steps + 1))
    epochs = steps * batch // count
    assert Counter(refs) == Counter((epoch, place) for epoch in range(epochs) for place in range(count))
    assert [epoch for epoch, _ in refs] == sorted(epoch for epoch, _ in refs)


def test_exact_order_step_does_not_depend_on_earlier_calls():
    order = ExactOrder(count=100, global_batch=8, seed=1)
    late = order.sample_refs(1000)
    for step in (1, 500, 20):
        order.sample_refs(step)
    epoch_order.cache_clear()
    assert order.sample_refs(1000) == late


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_ranks_together_take_the_whole_batch(world):
    order = ExactOrder(count=31, global_batch=12, seed=5)
    for step in (1, 3, 40):
        whole = order.sample_refs(step)
        parts = [Topology(rank=rank, world_size=world).rank_range(12) for rank in range(world)]
        assert [whole[place] for part in parts for place in part] == whole
        assert {len(part) for part in parts} == {12 // world}


def test_epoch_of():
    order = ExactOrder(count=10, global_batch=4, seed=0)
    assert [order.epoch_of(step) for step in range(1, 9)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [order.epoch_of(step) for step in range(1, 9)] == [order.sample_refs(step)[0][0] for step in range(1, 9)]


def test_cached_order_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(10, 0, 0)[0] = 3


def test_sample_and_step_seeds_differ_and_are_in_range():
    samples = {sample_seed(seed, epoch, key) for seed in range(3) for epoch in range(30) for key in "abcdef"}
    assert len(samples) == 540
    assert max(samples) < 2**32
    steps = {step_seed(seed, step, rank) for seed in range(3) for step in range(30) for rank in range(6)}
    assert len(steps) == 540
    assert max(steps) < 2**63
    assert all(high > low for low, high in pairwise(sorted(steps)))


SHARDS = np.repeat([0, 1, 2, 4, 5, 9, 10], [3, 8, 1, 8, 5, 8, 2])
"""Shards 3, 6, 7 and 8 contain only held-out folds; samples 0 to 2 are in shard 0, and so on."""


def hash_of(number, text):
    return int(splitmix64(np.array([number], dtype=np.uint64), hash_key(text))[0])


def reference_windows(shards, window, seed, epoch):
    """Yield the samples of one epoch window by window, by sorting lists."""
    turns = sorted(set(shards), key=lambda shard: hash_of(shard, f"window shards {seed} {epoch}"))
    for first in range(0, len(turns), window):
        places = [place for place, shard in enumerate(shards) if shard in turns[first : first + window]]
        yield sorted(places, key=lambda place: hash_of(place, f"window samples {seed} {epoch}"))


@pytest.mark.parametrize("window", [1, 2, 3, 6, 7, 100])
@pytest.mark.parametrize("shards", [SHARDS, np.random.default_rng(0).permutation(SHARDS), np.array([5])])
def test_window_order_matches_reference_loop(shards, window):
    for seed, epoch in ((0, 0), (0, 1), (2**40, 1_000_000)):
        expected = [place for part in reference_windows(shards.tolist(), window, seed, epoch) for place in part]
        assert window_order(shards, window, seed, epoch).tolist() == expected
        assert sorted(expected) == list(range(len(shards)))


def test_window_order_never_changes():
    """Change only if the order of existing runs may change."""
    assert " ".join(map(str, window_order(SHARDS, 2, 7, 3))) == GOLDEN_WINDOWS


def test_window_order_differs_between_epochs_and_mixes_shards():
    shards = np.repeat(np.arange(40), 25)
    orders = [window_order(shards, 4, seed, epoch) for seed in range(3) for epoch in range(3)]
    agreements = [int((one == other).sum()) for place, one in enumerate(orders) for other in orders[:place]]
    assert max(agreements) < 12, "two random orders of 1000 agree in one place on average"
    firsts = {tuple(sorted(set(shards[order[:100]]))) for order in orders}
    assert len(firsts) == len(orders), "each time other shards are mixed"
    for order in orders:
        same = int((shards[order[1:]] == shards[order[:-1]]).sum())
        assert 180 < same < 310, "a quarter of the neighbours, 243 of 999, by chance"


@pytest.mark.parametrize("batch", [1, 4, 7, 35, 50])
@pytest.mark.parametrize("window", [1, 3])
def test_window_order_takes_every_sample_once_per_epoch(batch, window):
    order = WindowOrder(shard_N=SHARDS, window=window, global_batch=batch, seed=3)
    assert (order.count, order.epoch_of(1)) == (35, 0)
    refs = [ticket for step in range(1, 71) for ticket in order.sample_refs(step)]
    epochs = 70 * batch // 35
    assert Counter(refs) == Counter((epoch, place) for epoch in range(epochs) for place in range(35))
    assert [epoch for epoch, _ in refs] == sorted(epoch for epoch, _ in refs)


def test_window_order_reads_each_shard_once_and_few_per_batch():
    shards, window, batch = np.repeat(np.arange(39), 25), 3, 32
    order = WindowOrder(shard_N=shards, window=window, global_batch=batch, seed=0)
    line = [(epoch, int(shards[place])) for step in range(1, 64) for epoch, place in order.sample_refs(step)]
    spans = {one: [place for place, other in enumerate(line) if other == one] for one in set(line)}
    assert max(max(places) - min(places) for places in spans.values()) < window * 25, "gone once its window is"
    needed = []
    for first in range(0, len(line), batch):
        windows = {place // (window * 25) for place in range(first, first + batch)}
        needed.append((len(windows), len(set(line[first : first + batch]))))
    assert {windows for windows, _ in needed} == {1, 2}
    assert all(shards <= windows * window for windows, shards in needed)


def test_window_order_step_computes_only_its_epochs():
    order = WindowOrder(shard_N=SHARDS, window=2, global_batch=8, seed=1)
    late = order.sample_refs(1000)
    for step in (1, 500, 20):
        order.sample_refs(step)
    assert WindowOrder(shard_N=SHARDS.copy(), window=2, global_batch=8, seed=1).sample_refs(1000) == late
    drawn = []
    counted = type("Counted", (WindowOrder,), {"_permutation": lambda self, e: drawn.append(e) or np.arange(35)})
    assert len(counted(shard_N=SHARDS, window=2, global_batch=8, seed=1).sample_refs(5)) == 8
    assert set(drawn) == {0, 1}, "only the epochs that it touches"
