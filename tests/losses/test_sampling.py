import itertools

import pytest
import torch

from hsadml_dist.losses.sampling import sample_rows
from tests.losses.slow_loop import is_drawn

NOBODY = torch.empty(0, dtype=torch.int64)


def chosen(rows, label=NOBODY, *, rate=0.3, seed=1, step=5):
    choice = sample_rows(rows, torch.as_tensor(label), rate=rate, seed=seed, step=step)
    return [rows.start + place for place in choice.position_R.tolist()], choice.drawn_R.tolist()


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.9, 1 - 2**-53, 1.0])
@pytest.mark.parametrize(("seed", "step"), [(0, 1), (7, 123_456), (2**40, 2)])
def test_those_are_drawn_that_the_slow_loop_draws(rate, seed, step):
    for rows in (range(300), range(10**9, 10**9 + 300), range(2**40, 2**40 + 50)):
        expected = [c for c in rows if is_drawn(c, rate=rate, seed=seed, step=step)]
        assert chosen(rows, rate=rate, seed=seed, step=step) == (expected, [True] * len(expected))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_the_share_that_is_drawn_is_the_rate(rate):
    count = 200_000
    for step in (1, 2, 3):
        drawn, _ = chosen(range(count), rate=rate, step=step)
        # Five standard deviations of a binomial number.
        assert abs(len(drawn) - count * rate) < 5 * (count * rate * (1 - rate)) ** 0.5


def test_what_is_drawn_does_not_depend_on_who_holds_it():
    whole, _ = chosen(range(1000))
    for edges in ((0, 500, 1000), (0, 1, 333, 333, 1000)):
        parts = [chosen(range(*edge))[0] for edge in itertools.pairwise(edges)]
        assert list(itertools.chain(*parts)) == whole


def test_steps_and_seeds_draw_independently():
    first, later, other = (set(chosen(range(10_000), rate=0.5, step=s, seed=k)[0]) for s, k in ((5, 1), (6, 1), (5, 2)))
    for one in (later, other):
        assert abs(len(first & one) - 2500) < 5 * (10_000 * 0.25 * 0.75) ** 0.5


def test_neighbours_are_drawn_independently():
    drawn = set(chosen(range(100_000), rate=0.5)[0])
    both = sum(c in drawn and c + 1 in drawn for c in range(99_999))
    assert abs(both - 25_000) < 5 * (100_000 * 0.25 * 0.75) ** 0.5 * 1.3


def test_targets_take_part_whether_drawn_or_not():
    drawn = set(chosen(range(50, 100))[0])
    left = next(c for c in range(50, 100) if c not in drawn)
    hit = next(iter(drawn))
    rows, marks = chosen(range(50, 100), [left, hit, left, 3, 100, 49])
    assert rows == sorted(drawn | {left})
    assert [c for c, mark in zip(rows, marks, strict=True) if not mark] == [left]


def test_no_rows():
    assert chosen(range(5, 5), [5, 4]) == ([], [])
