"""Draws by class: shares, bounds, seeds."""

from __future__ import annotations

import numpy as np
import pytest

from hsadml_dist.evaluation.draw import stratified


def labels(*counts: int) -> np.ndarray:
    label = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(9).permutation(label)


def test_few_slices_are_all_taken() -> None:
    assert stratified(labels(3, 4), most=7, seed=0).tolist() == list(range(7))
    assert stratified(np.empty(0, dtype=np.int64), most=7, seed=0).tolist() == []


def test_positions_are_ascending_distinct_and_as_many_as_asked_for() -> None:
    drawn = stratified(labels(500, 300, 200), most=100, seed=0)
    assert len(drawn) == 100 and (np.diff(drawn) > 0).all() and drawn[0] >= 0 and drawn[-1] < 1000


def test_each_class_keeps_its_share() -> None:
    label = labels(500, 300, 200)
    assert np.bincount(label[stratified(label, most=100, seed=0)]).tolist() == [50, 30, 20]


@pytest.mark.parametrize("most", [3, 5, 17, 250, 999])
def test_a_rare_class_keeps_at_least_one_slice_and_none_gets_more_than_it_has(most: int) -> None:
    label = labels(990, 1, 9)
    count = np.bincount(label[stratified(label, most=most, seed=1)], minlength=3)
    assert count.sum() == most and (count >= 1).all() and (count <= [990, 1, 9]).all()


def test_more_classes_than_room_are_drawn_from_alike() -> None:
    drawn = stratified(labels(*[2] * 50), most=10, seed=0)
    assert len(set(drawn.tolist())) == 10


def test_the_draw_follows_its_seed_and_reaches_every_slice() -> None:
    label = labels(20, 10)
    first = stratified(label, most=12, seed=0)
    assert first.tolist() == stratified(label, most=12, seed=0).tolist()
    reached = [stratified(label, most=12, seed=seed) for seed in range(40)]
    assert np.unique(np.concatenate(reached)).tolist() == list(range(30))
