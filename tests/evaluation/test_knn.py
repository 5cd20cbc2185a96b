"""Nearest neighbours against a slow exact reference, with ties, several block sizes and real processes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.knn import GRID, majority_label, nearest, nearest_distributed, round_to_grid


def rows_with_ties(queries: int = 23, gallery: int = 41) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of small whole numbers: many have the same direction, and many cosines tie."""
    generator = torch.Generator().manual_seed(3)
    both = torch.randint(-1, 2, (queries + gallery, 5), generator=generator).float()
    both *= torch.randint(1, 4, (len(both), 1), generator=generator)
    return both[:queries], both[queries:]


def exact_positions(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> list[list[int]]:
    """Sort the whole gallery by exact rational cosine (squared, signed), then by position."""

    def key(query: list[float], row: list[float]) -> Fraction:
        dot = sum((Fraction(a) * Fraction(b) for a, b in zip(query, row, strict=True)), Fraction(0))
        length = sum((Fraction(a) ** 2 for a in row), Fraction(0))
        return Fraction(0) if length == 0 else dot * abs(dot) / length

    rows = gallery.tolist()
    return [sorted(range(len(rows)), key=lambda r: (-key(q, rows[r]), r))[:k] for q in queries.tolist()]


@pytest.mark.parametrize("k", [1, 2, 7, 41])
@pytest.mark.parametrize("block", [1, 3, 8, 40, 41, 1000])
def test_nearest_resolves_ties_by_position_for_any_block_size(k: int, block: int) -> None:
    queries, gallery = rows_with_ties()
    _, positions = nearest(queries, gallery, k=k, block=block)
    assert positions.tolist() == exact_positions(queries, gallery, k)


def test_rows_with_ties_have_ties() -> None:
    queries, gallery = rows_with_ties()
    cosines, _ = nearest(queries, gallery, k=7, block=100)
    assert (cosines[:, 1:] == cosines[:, :-1]).sum() > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_returns_cosines_in_the_dtype_of_the_queries(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(50, 33, generator=generator, dtype=dtype) * 1e3
    gallery = torch.randn(200, 33, generator=generator, dtype=dtype) * 1e-3
    cosines, positions = nearest(queries, gallery, k=3, block=64)
    unit = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (queries, gallery)]
    expected = (unit[0] @ unit[1].T).sort(dim=1, descending=True)
    assert cosines.dtype == dtype
    assert positions.tolist() == expected.indices[:, :3].tolist()
    assert (cosines.double() - expected.values[:, :3]).abs().max() < 2e-7


def test_nearest_is_bit_identical_for_any_split_of_queries_and_gallery() -> None:
    generator = torch.Generator().manual_seed(2)
    queries, gallery = torch.randn(1100, 129, generator=generator), torch.randn(300, 129, generator=generator)
    whole = nearest(queries, gallery, k=5, block=300)
    for block in (3, 17, 256):
        cut = [nearest(part, gallery, k=5, block=block) for part in queries.split([1, 2, 37, 1060])]
        assert torch.equal(torch.cat([cosines for cosines, _ in cut]), whole[0])
        assert torch.equal(torch.cat([positions for _, positions in cut]), whole[1])


def test_nearest_orders_rows_that_differ_by_less_than_fp32_rounding() -> None:
    base = torch.ones(1, 512, dtype=torch.float64)
    nearby = base.repeat(4, 1)
    for row, shift in enumerate((3e-5, 1e-5, 0.0, 2e-5)):
        nearby[row, 0] += shift * 512
    assert nearest(base, nearby, k=4, block=2)[1].tolist() == [[2, 1, 3, 0]]


def test_round_to_grid_normalises_rows_of_any_length() -> None:
    rows = torch.tensor([[3.0, 4.0], [3e37, 4e37], [3e-44, 4e-44], [0.0, 0.0]])
    grid = round_to_grid(rows) / GRID
    assert torch.allclose(grid[:2], torch.tensor([[0.6, 0.8]], dtype=torch.float64), atol=1e-8)
    assert torch.allclose(grid[2], torch.tensor([0.6, 0.8], dtype=torch.float64), atol=0.1)  # subnormal: few digits
    assert grid[3].tolist() == [0, 0]
    assert torch.equal(round_to_grid(rows), round_to_grid(rows).round())


def test_nearest_refuses_bad_k_and_non_finite_rows() -> None:
    rows = torch.ones(3, 2)
    with pytest.raises(DataError, match=r"k: 4 .*1 to 3"):
        nearest(rows, rows, k=4, block=2)
    rows = torch.tensor([[1.0, float("nan")], [1.0, 1.0]])
    with pytest.raises(DataError, match="1 of 2 embeddings"):
        nearest(rows, rows, k=1, block=2)


def test_majority_label_breaks_ties_by_the_nearest_neighbour() -> None:
    labels = torch.tensor([[2, 1, 1], [2, 1, 0], [0, 0, 1], [1, 2, 2]])
    assert majority_label(labels).tolist() == [1, 2, 0, 2]
    assert majority_label(torch.tensor([[2, 1, 1, 2], [1, 2, 2, 1], [0, 1, 2, 2]])).tolist() == [2, 1, 2]
    assert majority_label(torch.tensor([[4], [3]])).tolist() == [4, 3]


# A gallery of 1300 rows is large enough for the candidate search in fp32; 53 rows are not.
@pytest.mark.parametrize(("world", "count"), [(1, 53), (2, 53), (3, 53), (4, 53), (2, 1300), (3, 1300)])
def test_nearest_distributed_equals_one_process(
    world: int, count: int, tmp_path: Path, ranks: Callable[..., list[Any]]
) -> None:
    queries, gallery = rows_with_ties(29, count)
    expected = nearest_distributed(queries, gallery, SoloComm(), k=4, block=10)
    rows = tmp_path / "rows.pt"
    torch.save({"queries": queries, "gallery": gallery}, rows)
    found = ranks("evaluation/knn_ranks.py", world, str(rows))
    assert found == [{"cosines": expected[0].tolist(), "positions": expected[1].tolist()}] * world
