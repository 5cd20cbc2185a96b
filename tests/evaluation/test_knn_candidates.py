"""The candidate search in fp32 against exact sums of whole numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from hsadml_dist.evaluation.knn import (
    GRID,
    GalleryRows,
    find_candidates,
    fp32_product,
    max_candidates,
    nearest,
    round_to_grid,
    score_margin,
    search,
    search_all,
    search_candidates,
)

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def whole_number_search(queries: torch.Tensor, gallery: torch.Tensor, bias: torch.Tensor, k: int) -> Rows:
    """Return scores and positions of the k best rows, computed in int64."""
    twice = 2 * (queries.long() @ gallery.long().T) + (2 * bias).long()
    order = twice.sort(dim=1, descending=True, stable=True)
    return order.values[:, :k].double() / 2, order.indices[:, :k], bias


def gallery_rows(gallery: torch.Tensor, bias: torch.Tensor) -> GalleryRows:
    """Wrap rows in memory as :func:`search` does."""
    return GalleryRows(
        rows=gallery.__getitem__,
        shape=(len(gallery), gallery.shape[1]),
        max_norm=float(gallery.norm(dim=1).max()),
        max_abs=float(gallery.abs().max()),
        bias_R=bias if bool(bias.any()) else None,
    )


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(queries: torch.Tensor, gallery: torch.Tensor) -> Rows:
    return round_to_grid(queries), round_to_grid(gallery), gallery.new_zeros(len(gallery))


def random_rows(dim: int) -> Rows:
    return unit(randn(7, dim, seed=1), randn(700, dim, seed=2))


def clustered(dim: int) -> Rows:
    """Return rows around ten centres, closer than the resolution of fp32."""
    centres = randn(10, dim, seed=3)
    return unit(centres[:7], centres.repeat(70, 1) + 1e-7 * randn(700, dim, seed=4))


def equal(dim: int) -> Rows:
    return unit(randn(7, dim, seed=5), randn(1, dim, seed=6).repeat(700, 1))


def zeros(dim: int) -> Rows:
    queries, gallery = randn(7, dim, seed=7), randn(700, dim, seed=8)
    queries[::2], gallery[1::3] = 0, 0
    return unit(queries, gallery)


def tiny_differences(dim: int) -> Rows:
    """Return rows that differ by steps of 1e-7 in one component."""
    base = torch.ones(1, dim, dtype=torch.float64)
    gallery = base.repeat(700, 1)
    gallery[:, 0] += 1e-7 * dim * torch.randperm(700, generator=torch.Generator().manual_seed(9))
    return unit(base + 1e-3 * randn(7, dim, seed=10), gallery)


def pixels(dim: int) -> Rows:
    """Return grey levels of a few subjects, and the bias that turns products into distances."""
    generator = torch.Generator().manual_seed(11)
    subjects = torch.randint(0, 256, (20, dim), generator=generator)
    noise = torch.randint(-2, 3, (707, dim), generator=generator)
    rows = (subjects[torch.arange(707) % 20] + noise).clamp(0, 255).double()
    return rows[:7], rows[7:], -(rows[7:] ** 2).sum(dim=1) / 2


KINDS = (random_rows, clustered, equal, zeros, tiny_differences, pixels)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("dim", [1, 3, 128, 4096])
def test_search_candidates_equals_whole_number_search(make: Callable[[int], Rows], dim: int) -> None:
    queries, gallery, bias = make(dim)
    scores, positions, _ = whole_number_search(queries, gallery, bias, 700)
    rows = gallery_rows(gallery, bias)
    for k, block in ((1, 1000), (5, 64), (40, 699), (700, 300)):
        found = search_candidates(queries, rows, k, block)
        assert torch.equal(found[0], scores[:, :k])
        assert torch.equal(found[1], positions[:, :k])


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("block", [1, 2, 7, 63, 65, 128])
def test_search_candidates_is_independent_of_the_block_size(make: Callable[[int], Rows], block: int) -> None:
    queries, gallery, bias = make(3)
    rows = gallery_rows(gallery[:150], bias[:150])
    expected = search_all(queries, rows, 6, 150)
    found = search_candidates(queries, rows, 6, block)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_plain_fp32_would_be_incorrect() -> None:
    for make in (clustered, tiny_differences):
        queries, gallery, bias = make(128)
        in_fp32 = (queries.float() @ gallery.float().T).sort(dim=1, descending=True, stable=True).indices
        assert not torch.equal(in_fp32[:, :5], whole_number_search(queries, gallery, bias, 5)[1])


@pytest.mark.parametrize(("make", "dim"), [(random_rows, 128), (random_rows, 4096), (pixels, 128), (pixels, 4096)])
def test_fp32_error_is_within_the_margin(make: Callable[[int], Rows], dim: int) -> None:
    queries, gallery, bias = make(dim)
    rows = gallery_rows(gallery, bias)
    in_fp32 = fp32_product(queries)(gallery) + bias.float()
    error = (in_fp32.double() - exact_scores(queries, gallery, bias)).abs()
    assert (error <= score_margin(queries, rows) / 2).all()


def exact_scores(queries: torch.Tensor, gallery: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (2 * (queries.long() @ gallery.long().T) + (2 * bias).long()).double() / 2


def test_find_candidates_keeps_few_random_rows() -> None:
    queries, gallery, bias = random_rows(128)
    found = find_candidates(queries, gallery_rows(gallery, bias), k=5, block=256)
    assert not found.overflow_Q.any()
    assert 5 * len(queries) <= len(found.query_H) < 2 * 5 * len(queries)


def test_find_candidates_does_not_overflow_for_blocks_smaller_than_k() -> None:
    queries, gallery, bias = random_rows(3)
    found = find_candidates(queries, gallery_rows(gallery[:150], bias[:150]), k=6, block=1)
    assert not found.overflow_Q.any()


def test_score_margin_is_smaller_for_exact_grey_levels() -> None:
    queries, gallery, bias = pixels(4096)
    rows = gallery_rows(gallery, bias)
    wider = score_margin(queries, dataclasses.replace(rows, max_abs=300.0))
    assert (wider > 8 * score_margin(queries, rows)).all()


def test_find_candidates_lists_nothing_for_queries_that_overflow() -> None:
    queries, gallery, _ = equal(16)
    queries[0] = 0
    gallery = torch.cat([gallery, round_to_grid(randn(10, 16, seed=12))])
    found = find_candidates(queries, gallery_rows(gallery, torch.zeros(710)), k=2, block=100)
    assert max_candidates(2) < 700
    assert found.overflow_Q[0]
    assert not found.overflow_Q[found.query_H].any()


def test_nearest_and_search_equal_whole_number_search() -> None:
    queries, gallery = randn(30, 20, seed=13).float(), randn(4 * max_candidates(3), 20, seed=14).float()
    gallery[500:600] = gallery[7]
    scores, positions, _ = whole_number_search(*unit(queries, gallery), 3)
    for block in (37, 10_000):
        cosines, found = nearest(queries, gallery, k=3, block=block)
        assert torch.equal(found, positions)
        assert torch.equal(cosines, (scores / GRID**2).float())
    found = search(*unit(queries, gallery), k=3, block=200)
    assert torch.equal(found[0], scores)
    assert torch.equal(found[1], positions)
    assert nearest(queries[:0], gallery, k=3, block=100)[1].shape == (0, 3)


def test_nearest_ignores_autocast_and_matmul_precision() -> None:
    queries, gallery = randn(30, 64, seed=15).float(), randn(4 * max_candidates(3), 64, seed=16).float()
    expected = nearest(queries, gallery, k=3, block=500)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = nearest(queries, gallery, k=3, block=500)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="needs torch 2.9")
def test_nearest_ignores_and_keeps_fp32_precision() -> None:
    queries, gallery = randn(30, 64, seed=15).float(), randn(4 * max_candidates(3), 64, seed=16).float()
    expected = nearest(queries, gallery, k=3, block=500)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        found = nearest(queries, gallery, k=3, block=500)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_search_candidates_on_gpu_ignores_tf32() -> None:
    for make in KINDS:
        queries, gallery, bias = make(128)
        expected = whole_number_search(queries, gallery, bias, 5)
        torch.set_float32_matmul_precision("high")
        try:
            rows = gallery_rows(gallery.cuda(), bias.cuda())
            found = search_candidates(queries.cuda(), rows, 5, 300)
        finally:
            torch.set_float32_matmul_precision("highest")
        assert torch.equal(found[0].cpu(), expected[0])
        assert torch.equal(found[1].cpu(), expected[1])
