import itertools

import pytest
import torch
from torch import nn

from hsadml_dist.losses.centres import (
    CentreBlock,
    SampledRows,
    iter_blocks,
    normalize_backward_,
    normalize_rows,
    sample_rows,
)
from tests.losses.slow_loop import is_drawn


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_iter_blocks_yields_views_of_all_rows(size):
    weight_CD = draw(7, 3)
    blocks = list(iter_blocks(weight_CD, 10, size, None))
    assert torch.equal(torch.cat([block.weight_KD for block in blocks]), weight_CD)
    assert torch.cat([block.class_K for block in blocks]).tolist() == list(range(10, 17))
    assert [len(block.class_K) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    for block in blocks:
        assert torch.equal(weight_CD[block.index], block.weight_KD)
        assert block.weight_KD.data_ptr() == weight_CD[block.index].data_ptr(), "whole blocks are not copied"
        assert block.drawn_K is None


@pytest.mark.parametrize("size", [1, 2, 100])
def test_iter_blocks_yields_sampled_rows(size):
    weight_CD, position_R, drawn_R = draw(7, 3), torch.tensor([0, 3, 4, 6]), torch.tensor([True, False, True, True])
    blocks = list(iter_blocks(weight_CD, 10, size, SampledRows(position_R=position_R, drawn_R=drawn_R)))
    assert torch.equal(torch.cat([block.weight_KD for block in blocks]), weight_CD[position_R])
    assert torch.cat([block.class_K for block in blocks]).tolist() == [10, 13, 14, 16]
    assert torch.equal(torch.cat([block.drawn_K for block in blocks]), drawn_R)
    assert torch.equal(torch.cat([block.index for block in blocks]), position_R)


def test_iter_blocks_without_rows_yields_nothing():
    assert list(iter_blocks(draw(0, 3), 5, 4, None)) == []
    nobody = SampledRows(position_R=torch.empty(0, dtype=torch.int64), drawn_R=torch.empty(0, dtype=torch.bool))
    assert list(iter_blocks(draw(7, 3), 5, 4, nobody)) == []


@pytest.mark.parametrize(
    ("classes", "label", "expected"),
    [
        ([10, 11, 12], [9, 10, 12, 13, 11, 10], [(1, 0), (2, 2), (4, 1), (5, 0)]),
        ([10, 13, 16], [10, 11, 13, 16, 17, 0], [(0, 0), (2, 1), (3, 2)]),
        ([4], [3, 5], []),
        ([4, 5], [], []),
    ],
)
def test_block_targets_returns_samples_and_columns(classes, label, expected):
    block = CentreBlock(index=slice(0), class_K=torch.tensor(classes), weight_KD=draw(len(classes), 2))
    sample, column = block.targets(torch.tensor(label, dtype=torch.int64))
    assert list(zip(sample.tolist(), column.tolist(), strict=True)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalize_rows_returns_unit_or_zero_rows(dtype):
    rows_ND = torch.tensor([[3, 4], [0, 0], [1e-13, 0], [-2e-12, 0], [1e15, 1e15]], dtype=dtype)
    unit_ND, inverse_N = normalize_rows(rows_ND)
    expected = torch.tensor([[0.6, 0.8], [0, 0], [0, 0], [-1, 0], [0.5**0.5, 0.5**0.5]], dtype=dtype)
    torch.testing.assert_close(unit_ND, expected)
    torch.testing.assert_close(inverse_N, torch.tensor([0.2, 0, 0, 5e11, 0.5**0.5 * 1e-15], dtype=dtype))


def test_normalize_backward_matches_autograd_in_place():
    rows_ND, grad_ND = draw(6, 4).requires_grad_(), draw(6, 4, seed=1)
    (expected,) = torch.autograd.grad(nn.functional.normalize(rows_ND, dim=1), rows_ND, grad_ND)
    given = grad_ND.clone()
    found = normalize_backward_(given, *normalize_rows(rows_ND.detach()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert found.data_ptr() == given.data_ptr()


def test_normalize_backward_of_zero_rows_is_zero():
    rows_ND = torch.zeros(2, 3)
    assert torch.equal(normalize_backward_(torch.ones(2, 3), *normalize_rows(rows_ND)), torch.zeros(2, 3))


NOBODY = torch.empty(0, dtype=torch.int64)


def chosen(rows, label=NOBODY, *, rate=0.3, seed=1, step=5):
    choice = sample_rows(rows, torch.as_tensor(label), rate=rate, seed=seed, step=step)
    return [rows.start + place for place in choice.position_R.tolist()], choice.drawn_R.tolist()


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.9, 1 - 2**-53, 1.0])
@pytest.mark.parametrize(("seed", "step"), [(0, 1), (7, 123_456), (2**40, 2)])
def test_sample_rows_matches_slow_loop(rate, seed, step):
    for rows in (range(300), range(10**9, 10**9 + 300), range(2**40, 2**40 + 50)):
        expected = [c for c in rows if is_drawn(c, rate=rate, seed=seed, step=step)]
        assert chosen(rows, rate=rate, seed=seed, step=step) == (expected, [True] * len(expected))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_sample_rows_draws_the_given_rate(rate):
    count = 200_000
    for step in (1, 2, 3):
        drawn, _ = chosen(range(count), rate=rate, step=step)
        # Five standard deviations of a binomial number.
        assert abs(len(drawn) - count * rate) < 5 * (count * rate * (1 - rate)) ** 0.5


def test_sample_rows_does_not_depend_on_sharding():
    whole, _ = chosen(range(1000))
    for edges in ((0, 500, 1000), (0, 1, 333, 333, 1000)):
        parts = [chosen(range(*edge))[0] for edge in itertools.pairwise(edges)]
        assert list(itertools.chain(*parts)) == whole


def test_sample_rows_is_independent_between_steps_and_seeds():
    first, later, other = (set(chosen(range(10_000), rate=0.5, step=s, seed=k)[0]) for s, k in ((5, 1), (6, 1), (5, 2)))
    for one in (later, other):
        assert abs(len(first & one) - 2500) < 5 * (10_000 * 0.25 * 0.75) ** 0.5


def test_sample_rows_is_independent_between_neighbouring_classes():
    drawn = set(chosen(range(100_000), rate=0.5)[0])
    both = sum(c in drawn and c + 1 in drawn for c in range(99_999))
    assert abs(both - 25_000) < 5 * (100_000 * 0.25 * 0.75) ** 0.5 * 1.3


def test_sample_rows_includes_undrawn_targets():
    drawn = set(chosen(range(50, 100))[0])
    left = next(c for c in range(50, 100) if c not in drawn)
    hit = next(iter(drawn))
    rows, marks = chosen(range(50, 100), [left, hit, left, 3, 100, 49])
    assert rows == sorted(drawn | {left})
    assert [c for c, mark in zip(rows, marks, strict=True) if not mark] == [left]


def test_sample_rows_without_rows_is_empty():
    assert chosen(range(5, 5), [5, 4]) == ([], [])
