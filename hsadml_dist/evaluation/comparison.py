"""Paired comparison of two methods on the same slices, with tests that treat a patient's slices as a cluster.

All tests are two-sided and use one number per patient: the sum over the patient's slices of how much more often the
first method is correct than the second. Several seeds of a method are averaged on each slice first, so that a patient
counts once for any number of seeds; the variation between seeds is not covered.

Shapes: N slices, G clusters (patients, or the finest known substitute), P permutations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hsadml_dist.evaluation.intervals import LEVEL, Interval, difference_interval
from hsadml_dist.evaluation.metrics import Ints
from hsadml_dist.evaluation.patient_metrics import Clusters

DRAWS = 10_000
"""Permutations drawn if they cannot all be counted."""
MAX_EXACT_STEPS = 1 << 28
"""Largest number of additions for counting all permutations: half a second."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Correct predictions of a method on each slice.

    Attributes:
        correct_N: Trainings (seeds) that classified the slice correctly, int64.
        trials_N: Trainings that classified it, int64, at least 1.
    """

    correct_N: Ints
    trials_N: Ints


@dataclass(frozen=True, kw_only=True)
class ChiSquare:
    """A chi-squared statistic with one degree of freedom and its two-sided p-value."""

    statistic: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """Result of a permutation test.

    Attributes:
        p: Two-sided p-value; never 0.
        exact: True if all permutations were counted, instead of a random sample.
        draws: Number of sampled permutations; None if all were counted.
    """

    p: float
    exact: bool
    draws: int | None


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Difference between two methods on the same slices.

    Attributes:
        slices: Slices classified by both.
        units: Their patients, or the finest known substitute.
        unit: ``person``, otherwise ``exam``, otherwise ``slice``: the unit of permutation, interval and sums.
        difference: First minus second, as a share of 1.
        interval: Interval of the difference; None for too few units.
        level: Share of such intervals that contain the true difference, approximately.
        slices_for: Slices that the first method classifies correctly more often.
        slices_against: Slices that the second method classifies correctly more often.
        units_for: Units with more correct slices by the first method.
        units_against: Units with more correct slices by the second method.
        permutation: Test that swaps the two methods on whole units: the one to report.
        clustered: McNemar's test over slices with the variance between units.
        unclustered_misleading: McNemar's test as if slices were independent, for reference only: slices of one patient
            are similar, so its p-value is too small.
    """

    slices: int
    units: int
    unit: str
    accuracy_first: float
    accuracy_second: float
    difference: float
    interval: Interval | None
    level: float
    slices_for: int
    slices_against: int
    units_for: int
    units_against: int
    permutation: Permutation
    clustered: ChiSquare
    unclustered_misleading: ChiSquare


def compare(first: Outcomes, second: Outcomes, groups: Clusters, *, seed: int) -> PairedComparison:
    """Compare two methods on the slices (N,) that both have classified, N at least 1.

    Args:
        first: Outcomes of one method.
        second: Outcomes of the other on the same slices in the same order.
        groups: Patients of the slices.
        seed: Seed of the permutations if they are sampled.
    """
    scaled_N, scale = _scaled_difference(first, second)
    scaled_G = np.zeros(groups.count, dtype=np.int64)
    np.add.at(scaled_G, groups.cluster_N, scaled_N)
    accuracy_first, accuracy_second = (float(np.mean(side.correct_N / side.trials_N)) for side in (first, second))
    return PairedComparison(
        slices=len(scaled_N),
        units=groups.count,
        unit=groups.unit,
        accuracy_first=accuracy_first,
        accuracy_second=accuracy_second,
        difference=float(scaled_N.sum() / scale / len(scaled_N)),
        interval=difference_interval(scaled_N / scale, groups),
        level=LEVEL,
        slices_for=int((scaled_N > 0).sum()),
        slices_against=int((scaled_N < 0).sum()),
        units_for=int((scaled_G > 0).sum()),
        units_against=int((scaled_G < 0).sum()),
        permutation=permutation_test(scaled_G, seed=seed),
        clustered=clustered_mcnemar(scaled_G),
        unclustered_misleading=mcnemar(scaled_N),
    )


def mcnemar(difference_N: Ints) -> ChiSquare:
    """Run McNemar's test as if slices were independent, on differences of -1, 0 and 1 in any scale.

    With b slices that only the first method classifies correctly and c that only the second does:
    (b - c)^2 / (b + c), without the continuity correction. Source: McNemar, Psychometrika 12, 1947, 153-157.
    """
    return _chi_square(difference_N, 1)


def clustered_mcnemar(difference_G: Ints) -> ChiSquare:
    """Run McNemar's test with the variance between clusters in place of that between slices.

    With d_k the difference b_k - c_k of cluster k of K: (K - 1) / K * (sum d_k)^2 / sum d_k^2. Clusters without a
    difference count in K. Source: Obuchowski, Statistics in Medicine 17, 1998, 1495-1507: the squared difference of
    two proportions over its clustered variance, each centred at the pooled proportion as under the null hypothesis, in
    the short form of Yang, Sun and Hardin, Biometrical Journal 52, 2010, 638-652. The test of Durkalski et al.,
    Statistics in Medicine 22, 2003, 2417-2428, divides each d_k by the size of the cluster first: it tests the mean
    over patients, while the accuracies here are means over slices.
    """
    return _chi_square(difference_G, (len(difference_G) - 1) / len(difference_G))


def permutation_test(difference_G: Ints, *, seed: int, draws: int = DRAWS) -> Permutation:
    """Test the sum of differences against random swaps of the two methods on whole clusters.

    If possible, all 2^G swaps are counted by adding one cluster after another to the distribution of the sum (the shift
    algorithm of Streitberg and Roehmel, Statistical Software Newsletter 12, 1986, 10-17): whole numbers in few steps,
    no ties lost to rounding. Otherwise swaps are sampled, and p is (1 + as far or further) / (1 + draws): Phipson and
    Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010, article 39.

    Args:
        difference_G: Whole numbers in any unit; zeros have no effect.
        seed: Seed of the sample.
        draws: Number of sampled swaps.
    """
    difference = difference_G[difference_G != 0]
    size_G = np.abs(difference)
    size_G = size_G // max(1, int(np.gcd.reduce(size_G, initial=0)))
    observed = abs(int((np.sign(difference) * size_G).sum()))
    if len(size_G) * int(size_G.sum()) <= MAX_EXACT_STEPS:
        return Permutation(p=_exact_p(size_G, observed), exact=True, draws=None)
    return Permutation(p=_sampled_p(size_G, observed, seed, draws), exact=False, draws=draws)


def _exact_p(size_G: Ints, observed: int) -> float:
    """Return the share of all sign patterns whose sum is at least ``observed`` away from 0."""
    if observed == 0:
        return 1.0
    total = int(size_G.sum())
    # chance[u]: the probability that the clusters with a minus sign add up to u; the signed sum is total - 2 u.
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for size in size_G.tolist():
        shifted = np.zeros_like(chance)
        shifted[size:] = chance[:-size]
        chance = (chance + shifted) / 2
    below = chance[: (total - observed) // 2 + 1].sum()
    return max(min(1.0, 2 * float(below)), np.finfo(np.float64).tiny)


def _sampled_p(size_G: Ints, observed: int, seed: int, draws: int) -> float:
    generator = np.random.default_rng(seed)
    hits = 0
    for start in range(0, draws, 100):
        minus_PG = generator.integers(0, 2, (min(100, draws - start), len(size_G)), dtype=np.int8)
        hits += int((np.abs(size_G.sum() - 2 * (minus_PG @ size_G)) >= observed).sum())
    return (1 + hits) / (1 + draws)


def _scaled_difference(first: Outcomes, second: Outcomes) -> tuple[Ints, int]:
    """Return the differences in accuracy (N,) as whole multiples of 1 / scale, and the scale."""
    trials = np.unique(np.concatenate([first.trials_N, second.trials_N]))
    scale = math.lcm(*trials.tolist())
    scaled_N = first.correct_N * (scale // first.trials_N) - second.correct_N * (scale // second.trials_N)
    return scaled_N, scale


def _chi_square(difference: Ints, factor: float) -> ChiSquare:
    """Test the squared sum over the sum of squares, times the factor; 0 if there is no difference."""
    squares = float((difference.astype(np.float64) ** 2).sum())
    statistic = factor * (float(difference.sum()) ** 2 / squares) if squares else 0.0
    return ChiSquare(statistic=statistic, p=math.erfc(math.sqrt(statistic / 2)))
