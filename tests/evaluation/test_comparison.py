"""Paired tests against enumeration, scipy, published formulas and simulations of the null hypothesis."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hsadml_dist.evaluation import comparison
from hsadml_dist.evaluation.comparison import (
    Outcomes,
    PairedComparison,
    clustered_mcnemar,
    compare,
    mcnemar,
    permutation_test,
)
from hsadml_dist.evaluation.intervals import difference_interval
from hsadml_dist.evaluation.metrics import Ints
from hsadml_dist.evaluation.patient_metrics import Clusters


def group_by(person_N: Ints) -> Clusters:
    unique, cluster = np.unique(person_N, return_inverse=True)
    return Clusters(unit="person", cluster_N=cluster.astype(np.int64), count=len(unique))


def one_trial(correct_N: np.ndarray) -> Outcomes:
    return Outcomes(correct_N=correct_N.astype(np.int64), trials_N=np.ones(len(correct_N), dtype=np.int64))


def every_swap(difference: list[int]) -> float:
    """Enumerate all sign patterns."""
    patterns = list(itertools.product((1, -1), repeat=len(difference)))
    seen = abs(sum(difference))
    far = sum(abs(sum(s * d for s, d in zip(signs, difference, strict=True))) >= seen for signs in patterns)
    return far / len(patterns)


@pytest.mark.parametrize("seed", range(8))
def test_permutation_test_equals_enumeration_of_all_swaps(seed: int) -> None:
    generator = np.random.default_rng(seed)
    difference = generator.integers(-6, 8, size=3 + seed) * (1 + seed % 3)
    found = permutation_test(difference, seed=0)
    assert found.exact and found.draws is None
    assert found.p == pytest.approx(every_swap(difference.tolist()), rel=1e-12)


def test_permutation_test_ignores_patients_without_difference() -> None:
    some = np.array([3, -1, 2, 2, 1])
    assert permutation_test(np.concatenate([some, np.zeros(50, dtype=np.int64)]), seed=0) == permutation_test(
        some, seed=0
    )
    assert permutation_test(np.zeros(4, dtype=np.int64), seed=0).p == 1.0


def test_permutation_test_of_one_slice_per_patient_is_the_sign_test() -> None:
    difference = np.array([1] * 130 + [-1] * 95)
    expected = stats.binomtest(130, 225).pvalue
    assert permutation_test(difference, seed=0).p == pytest.approx(expected, rel=1e-10)


def test_sampled_permutations_approximate_the_exact_p_and_are_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = np.random.default_rng(3).integers(-5, 7, size=60)
    exact = permutation_test(difference, seed=0).p
    monkeypatch.setattr(comparison, "MAX_EXACT_STEPS", 0)
    sampled = permutation_test(difference, seed=0, draws=20_000)
    assert not sampled.exact and sampled.draws == 20_000
    assert sampled.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    assert sampled != permutation_test(difference, seed=1, draws=20_000)
    assert permutation_test(np.full(200, 9), seed=0, draws=99).p == 0.01


def test_permutation_p_below_the_smallest_float_is_not_zero() -> None:
    assert permutation_test(np.ones(3000, dtype=np.int64), seed=0).p > 0


def obuchowski_statistic(first: np.ndarray, second: np.ndarray, person: np.ndarray) -> float:
    """Return the squared difference over var + var - 2 cov, each over clusters, centred at the pooled proportion."""
    names = sorted(set(person.tolist()))
    size = [int((person == name).sum()) for name in names]
    one = [int(first[person == name].sum()) for name in names]
    two = [int(second[person == name].sum()) for name in names]
    count, total = len(names), sum(size)
    pool = (sum(one) + sum(two)) / (2 * total)

    def covariance(left: list[int], right: list[int]) -> float:
        terms = ((x - n * pool) * (y - n * pool) for x, y, n in zip(left, right, size, strict=True))
        return count / (count - 1) * sum(terms) / total**2

    variance = covariance(one, one) + covariance(two, two) - 2 * covariance(one, two)
    return (sum(one) / total - sum(two) / total) ** 2 / variance


def sample_pair(seed: int, persons: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    person = np.repeat(np.arange(persons), generator.integers(1, 9, persons))
    first = generator.random(len(person)) < 0.8
    return first, generator.random(len(person)) < 0.65, person


def test_clustered_mcnemar_equals_the_published_formula() -> None:
    first, second, person = sample_pair(0)
    found = compare(one_trial(first), one_trial(second), group_by(person), seed=0)
    assert found.clustered.statistic == pytest.approx(obuchowski_statistic(first, second, person), rel=1e-12)
    assert found.clustered.p == pytest.approx(stats.chi2.sf(found.clustered.statistic, 1), rel=1e-10)


def test_mcnemar_equals_the_published_formula() -> None:
    difference = np.array([1] * 25 + [-1] * 11 + [0] * 60)
    assert mcnemar(difference).statistic == pytest.approx((25 - 11) ** 2 / 36)
    assert mcnemar(difference).p == pytest.approx(stats.chi2.sf(14**2 / 36, 1))
    assert clustered_mcnemar(difference).statistic == pytest.approx(95 / 96 * 14**2 / 36)
    assert (mcnemar(np.zeros(3, dtype=np.int64)).statistic, mcnemar(np.zeros(3, dtype=np.int64)).p) == (0.0, 1.0)


def test_compare_a_few_slices() -> None:
    first, second = np.array([1, 1, 1, 0, 0, 1]), np.array([0, 0, 1, 1, 0, 1])
    found = compare(one_trial(first), one_trial(second), group_by(np.array([0, 0, 0, 1, 1, 2])), seed=0)
    assert (found.slices, found.units, found.unit) == (6, 3, "person")
    assert (found.accuracy_first, found.accuracy_second) == (4 / 6, 3 / 6)
    assert found.difference == pytest.approx(1 / 6)
    assert (found.slices_for, found.slices_against, found.units_for, found.units_against) == (2, 1, 1, 1)
    assert found.permutation.p == 1.0  # +2 and -1 on two patients: sums 1, 3, -1, -3, none nearer to 0
    assert found.clustered.statistic == pytest.approx(2 / 3 * 1 / 5)
    assert found.interval is None, "3 patients are too few"


def test_compare_has_the_interval_of_the_difference() -> None:
    first, second, person = sample_pair(0)
    found = compare(one_trial(first), one_trial(second), group_by(person), seed=0)
    expected = difference_interval(first.astype(float) - second, group_by(person))
    assert found.interval == pytest.approx(expected)
    assert found.interval is not None and found.interval[0] < found.difference < found.interval[1]


def test_compare_is_antisymmetric() -> None:
    first, second, person = sample_pair(1)
    one = compare(one_trial(first), one_trial(second), group_by(person), seed=0)
    two = compare(one_trial(second), one_trial(first), group_by(person), seed=0)
    assert one.difference == -two.difference > 0
    assert (one.permutation, one.clustered, one.units_for) == (two.permutation, two.clustered, two.units_against)
    assert one.interval is not None and two.interval is not None
    assert one.interval == pytest.approx((-two.interval[1], -two.interval[0]), abs=1e-12)


def test_compare_averages_seeds_on_each_slice() -> None:
    first = Outcomes(correct_N=np.array([3, 1, 0]), trials_N=np.array([3, 3, 3]))
    second = Outcomes(correct_N=np.array([1, 0, 1]), trials_N=np.array([2, 2, 2]))
    found = compare(first, second, group_by(np.array([0, 0, 1])), seed=0)
    differences = [1 - 1 / 2 + 1 / 3, -1 / 2]
    assert found.difference == pytest.approx(sum(differences) / 3)
    assert found.clustered.statistic == pytest.approx(sum(differences) ** 2 / sum(d**2 for d in differences) / 2)
    assert found.permutation.p == 1.0
    assert (found.slices_for, found.slices_against) == (2, 1)


def test_compare_of_three_equal_seeds_equals_one_seed() -> None:
    first, second, person = sample_pair(2)
    single = compare(one_trial(first), one_trial(second), group_by(person), seed=0)
    thrice = [Outcomes(correct_N=3 * hits.astype(np.int64), trials_N=np.full(len(hits), 3)) for hits in (first, second)]
    assert compare(*thrice, group_by(person), seed=0) == single


def compare_equal_methods(seed: int, persons: int = 60) -> PairedComparison:
    """Compare two methods of the same quality; all slices of a patient favour the same one."""
    generator = np.random.default_rng(seed)
    person = np.repeat(np.arange(persons), generator.integers(2, 12, persons))
    lean = generator.normal(0, 0.25, persons)[person]
    first, second = (generator.random(len(person)) < 0.6 + sign * lean for sign in (1, -1))
    return compare(one_trial(first), one_trial(second), group_by(person), seed=seed)


def test_p_values_under_the_null_hypothesis_are_uniform_by_patient_and_too_small_by_slice() -> None:
    found = [compare_equal_methods(seed) for seed in range(500)]
    by_person = [one.permutation.p for one in found]
    clustered = [one.clustered.p for one in found]
    assert stats.kstest(by_person, "uniform").pvalue > 0.01
    assert stats.kstest(clustered, "uniform").pvalue > 0.01
    for p in (by_person, clustered):
        assert 0.025 < np.mean(np.array(p) < 0.05) < 0.08
    assert np.mean([one.unclustered_misleading.p < 0.05 for one in found]) > 0.12
    covered = np.mean([one.interval[0] <= 0 <= one.interval[1] for one in found if one.interval])
    assert 0.91 < covered < 0.98
