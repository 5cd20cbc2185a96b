"""Angles between rows, against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.whole_angles import BLOCK_ELEMENTS, DEGREE, between, blocks, gridded


def test_angles_are_whole_millionths_of_a_degree_of_the_definition() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(7, 5)), generator.normal(size=(4, 5))
    found = between(gridded(one), gridded(other))
    assert found.dtype == np.int64
    for row in range(7):
        for column in range(4):
            cosine = one[row] @ other[column] / np.linalg.norm(one[row]) / np.linalg.norm(other[column])
            assert found[row, column] / DEGREE == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-4)


def test_blocks_cover_all_rows_once_and_never_hold_none() -> None:
    assert blocks(5, 10 * BLOCK_ELEMENTS) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert blocks(5, BLOCK_ELEMENTS // 2) == [(0, 2), (2, 4), (4, 5)]
    assert blocks(0, 0) == []


def test_a_diverged_row_is_refused() -> None:
    with pytest.raises(DataError, match="NaN or infinity"):
        gridded(np.array([[np.nan, 1.0]]))
