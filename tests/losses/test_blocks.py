import pytest
import torch
from torch import nn

from hsadml_dist.losses.blocks import (
    CentreBlock,
    SampledRows,
    ScratchMatrix,
    iter_blocks,
    normalize_backward_,
    normalize_rows,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_blocks_of_all_rows(size):
    weight_CD = draw(7, 3)
    blocks = list(iter_blocks(weight_CD, 10, size, None))
    assert torch.equal(torch.cat([block.weight_KD for block in blocks]), weight_CD)
    assert torch.cat([block.class_K for block in blocks]).tolist() == list(range(10, 17))
    assert [len(block.class_K) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    for block in blocks:
        assert torch.equal(weight_CD[block.place], block.weight_KD)
        assert block.weight_KD.data_ptr() == weight_CD[block.place].data_ptr(), "whole blocks are not copied"
        assert block.drawn_K is None


@pytest.mark.parametrize("size", [1, 2, 100])
def test_blocks_of_chosen_rows(size):
    weight_CD, position_R, drawn_R = draw(7, 3), torch.tensor([0, 3, 4, 6]), torch.tensor([True, False, True, True])
    blocks = list(iter_blocks(weight_CD, 10, size, SampledRows(position_R=position_R, drawn_R=drawn_R)))
    assert torch.equal(torch.cat([block.weight_KD for block in blocks]), weight_CD[position_R])
    assert torch.cat([block.class_K for block in blocks]).tolist() == [10, 13, 14, 16]
    assert torch.equal(torch.cat([block.drawn_K for block in blocks]), drawn_R)
    assert torch.equal(torch.cat([block.place for block in blocks]), position_R)


def test_no_rows_no_blocks():
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
def test_targets_are_found_where_they_stand(classes, label, expected):
    block = CentreBlock(place=slice(0), class_K=torch.tensor(classes), weight_KD=draw(len(classes), 2))
    sample, column = block.targets(torch.tensor(label, dtype=torch.int64))
    assert list(zip(sample.tolist(), column.tolist(), strict=True)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows_are_unit_or_zero(dtype):
    rows_ND = torch.tensor([[3, 4], [0, 0], [1e-13, 0], [-2e-12, 0], [1e15, 1e15]], dtype=dtype)
    unit_ND, inverse_N = normalize_rows(rows_ND)
    expected = torch.tensor([[0.6, 0.8], [0, 0], [0, 0], [-1, 0], [0.5**0.5, 0.5**0.5]], dtype=dtype)
    torch.testing.assert_close(unit_ND, expected)
    torch.testing.assert_close(inverse_N, torch.tensor([0.2, 0, 0, 5e11, 0.5**0.5 * 1e-15], dtype=dtype))


def test_derivatives_go_through_the_unit_rows_as_autograd_sends_them():
    rows_ND, grad_ND = draw(6, 4).requires_grad_(), draw(6, 4, seed=1)
    (expected,) = torch.autograd.grad(nn.functional.normalize(rows_ND, dim=1), rows_ND, grad_ND)
    given = grad_ND.clone()
    found = normalize_backward_(given, *normalize_rows(rows_ND.detach()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert found.data_ptr() == given.data_ptr()


def test_rows_without_a_direction_get_no_gradient():
    rows_ND = torch.zeros(2, 3)
    assert torch.equal(normalize_backward_(torch.ones(2, 3), *normalize_rows(rows_ND)), torch.zeros(2, 3))


def test_scratch_memory_is_the_same_for_every_block():
    scratch = ScratchMatrix(draw(4, 3), 5)
    first, last = scratch.matrix(5), scratch.matrix(2)
    assert (first.shape, last.shape, last.dtype) == ((4, 5), (4, 2), torch.float64)
    assert last.is_contiguous()
    assert first.data_ptr() == last.data_ptr()
