"""The search by candidates against sums of whole numbers that cannot round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from hsadml_dist.evaluation import knn as knn_candidates
from hsadml_dist.evaluation.knn import (
    GRID,
    GalleryRows,
    crowd,
    find_candidates,
    nearest,
    round_to_grid,
    search,
    search_all,
    search_candidates,
)

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def by_whole_numbers(queries: torch.Tensor, references: torch.Tensor, bias: torch.Tensor, k: int) -> Rows:
    """Sort all references by twice the score, in int64."""
    twice = 2 * (queries.long() @ references.long().T) + (2 * bias).long()
    order = twice.sort(dim=1, descending=True, stable=True)
    return order.values[:, :k].double() / 2, order.indices[:, :k], bias


def as_references(references: torch.Tensor, bias: torch.Tensor) -> GalleryRows:
    """What the search makes of rows that lie in memory."""
    return GalleryRows(
        rows=references.__getitem__,
        shape=(len(references), references.shape[1]),
        reach=float(references.norm(dim=1).max()),
        peak=float(references.abs().max()),
        bias_R=bias if bool(bias.any()) else None,
    )


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(queries: torch.Tensor, references: torch.Tensor) -> Rows:
    return round_to_grid(queries), round_to_grid(references), references.new_zeros(len(references))


def random_rows(dim: int) -> Rows:
    return unit(randn(7, dim, seed=1), randn(700, dim, seed=2))


def clustered(dim: int) -> Rows:
    """Ten centres, and rows about them closer than fp32 tells apart."""
    centres = randn(10, dim, seed=3)
    return unit(centres[:7], centres.repeat(70, 1) + 1e-7 * randn(700, dim, seed=4))


def equal(dim: int) -> Rows:
    return unit(randn(7, dim, seed=5), randn(1, dim, seed=6).repeat(700, 1))


def zeros(dim: int) -> Rows:
    queries, references = randn(7, dim, seed=7), randn(700, dim, seed=8)
    queries[::2], references[1::3] = 0, 0
    return unit(queries, references)


def tiny_differences(dim: int) -> Rows:
    """Rows that differ from a query by steps of 1e-7 in one component."""
    base = torch.ones(1, dim, dtype=torch.float64)
    references = base.repeat(700, 1)
    references[:, 0] += 1e-7 * dim * torch.randperm(700, generator=torch.Generator().manual_seed(9))
    return unit(base + 1e-3 * randn(7, dim, seed=10), references)


def pixels(dim: int) -> Rows:
    """Grey levels of few subjects, and the bias that turns products into distances."""
    generator = torch.Generator().manual_seed(11)
    subjects = torch.randint(0, 256, (20, dim), generator=generator)
    noise = torch.randint(-2, 3, (707, dim), generator=generator)
    rows = (subjects[torch.arange(707) % 20] + noise).clamp(0, 255).double()
    return rows[:7], rows[7:], -(rows[7:] ** 2).sum(dim=1) / 2


KINDS = (random_rows, clustered, equal, zeros, tiny_differences, pixels)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("dim", [1, 3, 128, 4096])
def test_the_answers_are_those_of_whole_numbers(make: Callable[[int], Rows], dim: int) -> None:
    queries, references, bias = make(dim)
    scores, positions, _ = by_whole_numbers(queries, references, bias, 700)
    rows = as_references(references, bias)
    for k, block in ((1, 1000), (5, 64), (40, 699), (700, 300)):
        found = search_candidates(queries, rows, k, block)
        assert torch.equal(found[0], scores[:, :k])
        assert torch.equal(found[1], positions[:, :k])


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("block", [1, 2, 7, 63, 65, 128])
def test_small_blocks_change_nothing(make: Callable[[int], Rows], block: int) -> None:
    queries, references, bias = make(3)
    rows = as_references(references[:150], bias[:150])
    expected = search_all(queries, rows, 6, 150)
    found = search_candidates(queries, rows, 6, block)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_fp32_alone_would_be_wrong() -> None:
    for make in (clustered, tiny_differences):
        queries, references, bias = make(128)
        in_fp32 = (queries.float() @ references.float().T).sort(dim=1, descending=True, stable=True).indices
        assert not torch.equal(in_fp32[:, :5], by_whole_numbers(queries, references, bias, 5)[1])


@pytest.mark.parametrize(("make", "dim"), [(random_rows, 128), (random_rows, 4096), (pixels, 128), (pixels, 4096)])
def test_the_error_of_a_score_stays_within_the_bound(make: Callable[[int], Rows], dim: int) -> None:
    queries, references, bias = make(dim)
    rows = as_references(references, bias)
    in_fp32 = knn_candidates._product(queries)(references) + bias.float()
    error = (in_fp32.double() - by_scores(queries, references, bias)).abs()
    assert (error <= knn_candidates._margin(queries, rows) / 2).all()


def by_scores(queries: torch.Tensor, references: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (2 * (queries.long() @ references.long().T) + (2 * bias).long()).double() / 2


def test_few_candidates_are_left_of_random_rows() -> None:
    queries, references, bias = random_rows(128)
    found = find_candidates(queries, as_references(references, bias), k=5, block=256)
    assert not found.crowded_Q.any()
    assert 5 * len(queries) <= len(found.query_H) < 2 * 5 * len(queries)


def test_blocks_smaller_than_k_crowd_nobody() -> None:
    queries, references, bias = random_rows(3)
    found = find_candidates(queries, as_references(references[:150], bias[:150]), k=6, block=1)
    assert not found.crowded_Q.any()


def test_the_bound_knows_that_grey_levels_are_exact() -> None:
    queries, references, bias = pixels(4096)
    rows = as_references(references, bias)
    looser = knn_candidates._margin(queries, dataclasses.replace(rows, peak=300.0))
    assert (looser > 8 * knn_candidates._margin(queries, rows)).all()


def test_crowded_queries_list_nothing() -> None:
    queries, references, _ = equal(16)
    queries[0] = 0
    references = torch.cat([references, round_to_grid(randn(10, 16, seed=12))])
    found = find_candidates(queries, as_references(references, torch.zeros(710)), k=2, block=100)
    assert crowd(2) < 700
    assert found.crowded_Q[0]
    assert not found.crowded_Q[found.query_H].any()


def test_the_public_search_takes_the_candidates_and_agrees() -> None:
    queries, references = randn(30, 20, seed=13).float(), randn(4 * crowd(3), 20, seed=14).float()
    references[500:600] = references[7]
    scores, positions, _ = by_whole_numbers(*unit(queries, references), 3)
    for block in (37, 10_000):
        cosines, places = nearest(queries, references, k=3, block=block)
        assert torch.equal(places, positions)
        assert torch.equal(cosines, (scores / GRID**2).float())
    found = search(*unit(queries, references), k=3, block=200)
    assert torch.equal(found[0], scores)
    assert torch.equal(found[1], positions)
    assert nearest(queries[:0], references, k=3, block=100)[1].shape == (0, 3)


def test_lower_precision_around_the_search_does_not_reach_it() -> None:
    queries, references = randn(30, 64, seed=15).float(), randn(4 * crowd(3), 64, seed=16).float()
    expected = nearest(queries, references, k=3, block=500)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = nearest(queries, references, k=3, block=500)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_with_tf32_allowed() -> None:
    for make in KINDS:
        queries, references, bias = make(128)
        expected = by_whole_numbers(queries, references, bias, 5)
        torch.set_float32_matmul_precision("high")
        try:
            rows = as_references(references.cuda(), bias.cuda())
            found = search_candidates(queries.cuda(), rows, 5, 300)
        finally:
            torch.set_float32_matmul_precision("highest")
        assert torch.equal(found[0].cpu(), expected[0])
        assert torch.equal(found[1].cpu(), expected[1])
