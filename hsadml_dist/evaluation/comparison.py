"""Two methods judged on the same slices: is one better, when slices of one person are alike?

Shapes: N slices, G clusters (persons, or what stands for them), P permutations.
All tests here are two-sided and start from one number a person: the sum over the person's slices of how much more
often the first method is right than the second. Several seeds of a method are averaged on each slice before that, so
that a person counts once however many seeds there are; what another seed would give is not covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hsadml_dist.evaluation.metrics import LEVEL, Clusters, Interval, Ints, bootstrap_interval, share

DRAWS = 10_000
"""Permutations that are drawn where they cannot all be counted."""
MAX_EXACT_STEPS = 1 << 28
"""Additions up to which all permutations are counted: half a second."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How often a method was right on each slice.

    Attributes:
        correct_N: Trainings (seeds) that had the slice right, int64.
        trials_N: Trainings that judged it, int64, at least 1.
    """

    correct_N: Ints
    trials_N: Ints


@dataclass(frozen=True, kw_only=True)
class ChiSquare:
    """A statistic with one degree of freedom and its two-sided p."""

    statistic: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """The p of a permutation test.

    Attributes:
        p: Two-sided; never 0.
        exact: Whether all permutations were counted, not drawn.
        draws: How many were drawn; None where all were counted.
    """

    p: float
    exact: bool
    draws: int | None


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """How two methods differ on the same slices.

    Attributes:
        slices: Slices that both have judged.
        units: Their persons, or what stands for them.
        unit: ``person``, else ``exam``, else ``slice``: what is swapped, drawn and summed over as a whole.
        accuracy_first: Share of slices that the first method has right.
        accuracy_second: The same for the second.
        difference: First less second, a share of 1.
        interval: Bootstrap interval of the difference, the same units drawn for both; None for a single unit.
        level: Share of the bootstrap distribution inside.
        resamples: Number of bootstrap samples.
        slices_for: Slices that the first method has right more often.
        slices_against: Slices that the second has right more often.
        units_for: Units on which the first has more slices right.
        units_against: Units on which the second has.
        permutation: Test by swapping the two methods on whole units: the figure to quote.
        clustered: McNemar's test over slices with the variance between units.
        unclustered_misleading: McNemar's test as if slices were independent, for reference only: slices of one person
            are alike, so that its p is too small.
    """

    slices: int
    units: int
    unit: str
    accuracy_first: float
    accuracy_second: float
    difference: float
    interval: Interval | None
    level: float
    resamples: int
    slices_for: int
    slices_against: int
    units_for: int
    units_against: int
    permutation: Permutation
    clustered: ChiSquare
    unclustered_misleading: ChiSquare


def compare(first: Outcomes, second: Outcomes, of: Clusters, *, resamples: int, seed: int) -> PairedComparison:
    """Return how the first method differs from the second on slices (N,) that both have judged, N at least 1.

    Args:
        first: Outcomes of one method.
        second: Outcomes of the other, on the same slices in the same order.
        of: Whose slices they are.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap, and of the permutations where they are drawn.
    """
    scaled_N, scale = _scaled_difference(first, second)
    scaled_G = np.zeros(of.count, dtype=np.int64)
    np.add.at(scaled_G, of.of_N, scaled_N)
    difference_N = scaled_N / scale
    tally_N2 = np.stack([difference_N, np.ones_like(difference_N)], axis=1)
    one, two = (float(np.mean(side.correct_N / side.trials_N)) for side in (first, second))
    return PairedComparison(
        slices=len(scaled_N),
        units=of.count,
        unit=of.unit,
        accuracy_first=one,
        accuracy_second=two,
        difference=float(scaled_N.sum() / scale / len(scaled_N)),
        interval=bootstrap_interval(tally_N2, of, share, resamples=resamples, seed=seed),
        level=LEVEL,
        resamples=resamples,
        slices_for=int((scaled_N > 0).sum()),
        slices_against=int((scaled_N < 0).sum()),
        units_for=int((scaled_G > 0).sum()),
        units_against=int((scaled_G < 0).sum()),
        permutation=permutation(scaled_G, seed=seed),
        clustered=clustered_mcnemar(scaled_G),
        unclustered_misleading=mcnemar(scaled_N),
    )


def mcnemar(difference_N: Ints) -> ChiSquare:
    """Return McNemar's test as if slices were independent; it needs -1, 0 and 1, any scale of them.

    With b slices that only the first method has right and c that only the second has: (b - c)^2 / (b + c), without
    the correction for continuity. Source: McNemar, Psychometrika 12, 1947, 153-157.
    """
    return _chi_square(_ratio(difference_N))


def clustered_mcnemar(difference_G: Ints) -> ChiSquare:
    """Return McNemar's test with the variance between clusters in place of that between slices.

    With d_k the difference b_k - c_k of cluster k of K: (K - 1) / K * (sum d_k)^2 / sum d_k^2. Clusters without a
    difference count in K. Source: Obuchowski, Statistics in Medicine 17, 1998, 1495-1507: the squared difference of
    two proportions over its clustered variance, each centred at the pooled proportion as the null hypothesis has it,
    in the short form of Yang, Sun and Hardin, Biometrical Journal 52, 2010, 638-652. The test of Durkalski et al.,
    Statistics in Medicine 22, 2003, 2417-2428, divides each d_k by the cluster's size first: it asks about the mean
    over persons, while the accuracies here are means over slices.
    """
    count = len(difference_G)
    return _chi_square((count - 1) / count * _ratio(difference_G))


def permutation(difference_G: Ints, *, seed: int, draws: int = DRAWS) -> Permutation:
    """Return the p of the sum of differences when the two methods are swapped on whole clusters at random.

    All 2^G swaps are counted where that is possible, by adding one cluster after another to the distribution of the
    sum (the shift algorithm of Streitberg and Roehmel, Statistical Software Newsletter 12, 1986, 10-17): whole numbers
    in few steps, no ties lost to rounding. Otherwise swaps are drawn, and the p is (1 + as far or further) /
    (1 + drawn): Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010, article 39.

    Args:
        difference_G: Whole numbers in any unit; zeros change nothing.
        seed: Seed of the draws.
        draws: Number of draws.
    """
    size_G = np.abs(difference_G[difference_G != 0])
    size_G = size_G // max(1, int(np.gcd.reduce(size_G, initial=0)))
    reach = abs(int((np.sign(difference_G[difference_G != 0]) * size_G).sum()))
    if len(size_G) * int(size_G.sum()) <= MAX_EXACT_STEPS:
        return Permutation(p=_counted(size_G, reach), exact=True, draws=None)
    return Permutation(p=_drawn(size_G, reach, seed, draws), exact=False, draws=draws)


def _counted(size_G: Ints, reach: int) -> float:
    """Return the share of all sign patterns whose sum is at least ``reach`` away from 0."""
    if reach == 0:
        return 1.0
    total = int(size_G.sum())
    # chance[u]: the chance that the clusters with a minus sign add up to u; the signed sum is total - 2 u.
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for size in size_G.tolist():
        shifted = np.zeros_like(chance)
        shifted[size:] = chance[:-size]
        chance = (chance + shifted) / 2
    below = chance[: (total - reach) // 2 + 1].sum()
    return max(min(1.0, 2 * float(below)), np.finfo(np.float64).tiny)


def _drawn(size_G: Ints, reach: int, seed: int, draws: int) -> float:
    generator = np.random.default_rng(seed)
    hits = 0
    for start in range(0, draws, 100):
        minus_PG = generator.integers(0, 2, (min(100, draws - start), len(size_G)), dtype=np.int8)
        hits += int((np.abs(size_G.sum() - 2 * (minus_PG @ size_G)) >= reach).sum())
    return (1 + hits) / (1 + draws)


def _scaled_difference(first: Outcomes, second: Outcomes) -> tuple[Ints, int]:
    """Return the differences of the shares right as whole numbers (N,), and the number that stands for 1."""
    tries = np.unique(np.concatenate([first.trials_N, second.trials_N]))
    scale = math.lcm(*tries.tolist())
    return (first.correct_N * (scale // first.trials_N) - second.correct_N * (scale // second.trials_N)), scale


def _ratio(difference: Ints) -> float:
    """Return the squared sum over the sum of squares; 0 where nothing differs."""
    squares = float((difference.astype(np.float64) ** 2).sum())
    return float(difference.sum()) ** 2 / squares if squares else 0.0


def _chi_square(statistic: float) -> ChiSquare:
    return ChiSquare(statistic=statistic, p=math.erfc(math.sqrt(statistic / 2)))
