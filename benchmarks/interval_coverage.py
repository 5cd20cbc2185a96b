"""Measure how often the 95 % intervals of an evaluation contain the true value, by simulation.

A simulated test fold has 10, 28 or 141 patients with 3 to 30 slices each. Every patient has its own probability that a
slice is correct, drawn from a beta distribution whose mean is the true accuracy and which makes two slices of a patient
correlate by rho. Differences are between two methods of equal accuracy whose patients correlate, so every interval
without 0 is an error of the first kind. Next to the product's intervals stand percentile bootstraps over patients.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hsadml_dist.evaluation.intervals import METHOD, accuracy_interval, balanced_interval, difference_interval
from hsadml_dist.evaluation.patient_metrics import Clusters

PATIENTS = (10, 28, 141)
CORRELATIONS = (0.1, 0.3)
ACCURACIES = (0.75, 0.9, 0.97)
CLASS_ACCURACIES = (0.95, 0.85, 0.7)
"""Of three classes; each patient has one of them, drawn with probabilities .45, .35 and .2."""
CLASS_SHARES = (0.45, 0.35, 0.2)
FEWEST_SLICES, MOST_SLICES = 3, 30
RESAMPLES = 400
LEVEL = 0.95

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float] | None
Trial = Callable[[np.random.Generator], dict[str, bool]]


def main() -> None:
    """Simulate, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a few repeats, to test this program")
    options = parser.parse_args()
    repeats = 20 if options.tiny else options.repeats
    cases = []
    for name, trial in trials():
        cases += measure(name, trial, repeats, options.seed)
        sys.stdout.write(
            "  ".join([f"{name:<44}", *(f"{one['implementation']} {one['share']:.1%}" for one in cases[-2:])]) + "\n"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor_count": os.cpu_count(), "numpy": np.__version__}
        options.json.write_text(json.dumps({"machine": machine, "cases": cases}, indent=2) + "\n")


def trials() -> Iterator[tuple[str, Trial]]:
    """Yield name and simulation of each case."""
    for patients in PATIENTS:
        for rho in CORRELATIONS:
            place = f"{patients} patients, rho {rho}"
            for accuracy in ACCURACIES:
                yield f"coverage: accuracy {accuracy}, {place}", accuracy_trial(patients, rho, accuracy)
            yield f"coverage: balanced accuracy, {place}", balanced_trial(patients, rho)
            yield f"type I: difference, {place}", difference_trial(patients, rho)


def measure(name: str, trial: Trial, repeats: int, seed: int) -> list[dict[str, object]]:
    """Return for each implementation the share of trials that came true."""
    generator = np.random.default_rng(seed)
    outcomes = [trial(generator) for _ in range(repeats)]
    return [
        {
            "case": name,
            "implementation": implementation,
            "share": float(np.mean([one[implementation] for one in outcomes])),
            "repeats": repeats,
            "seed": seed,
        }
        for implementation in outcomes[0]
    ]


def accuracy_trial(patients: int, rho: float, accuracy: float) -> Trial:
    """Return a simulation of whether intervals of the accuracy contain it."""

    def trial(generator: np.random.Generator) -> dict[str, bool]:
        groups = draw_patients(generator, patients)
        correct_N = draw_correct(generator, groups, np.full(patients, accuracy), rho)
        tally_NK = np.stack([correct_N, np.ones_like(correct_N)], axis=1)
        plain = bootstrap_interval(generator, tally_NK, groups, lambda sums: sums[:, 0] / sums[:, 1])
        return contains(accuracy, accuracy_interval(correct_N, groups), plain)

    return trial


def balanced_trial(patients: int, rho: float) -> Trial:
    """Return a simulation of whether intervals of the balanced accuracy contain it, over the classes of the fold."""
    classes = len(CLASS_ACCURACIES)

    def balanced(sums: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.nanmean(sums[:, :classes] / sums[:, classes:], axis=1)

    def trial(generator: np.random.Generator) -> dict[str, bool]:
        groups = draw_patients(generator, patients)
        label_G = generator.choice(classes, patients, p=CLASS_SHARES)
        correct_N = draw_correct(generator, groups, np.array(CLASS_ACCURACIES)[label_G], rho)
        label_N = label_G[groups.cluster_N]
        member_NC = np.eye(classes)[label_N]
        tally_NK = np.concatenate([member_NC * correct_N[:, None], member_NC], axis=1)
        truth = float(np.mean([CLASS_ACCURACIES[label] for label in np.unique(label_G)]))
        plain = bootstrap_interval(generator, tally_NK, groups, balanced)
        return contains(truth, balanced_interval(correct_N, label_N, classes, groups), plain)

    return trial


def difference_trial(patients: int, rho: float) -> Trial:
    """Return a simulation of whether intervals of a difference that is 0 exclude it."""

    def trial(generator: np.random.Generator) -> dict[str, bool]:
        groups = draw_patients(generator, patients)
        chance_G = draw_chances(generator, np.full(patients, 0.85), rho)
        first_N, second_N = (draw_correct(generator, groups, chance_G, rho / 2) for _ in range(2))
        tally_NK = np.stack([first_N - second_N, np.ones_like(first_N)], axis=1)
        plain = bootstrap_interval(generator, tally_NK, groups, lambda sums: sums[:, 0] / sums[:, 1])
        found = contains(0.0, difference_interval(first_N - second_N, groups), plain)
        return {name: not contained for name, contained in found.items()}

    return trial


def draw_patients(generator: np.random.Generator, patients: int) -> Clusters:
    """Return patients with random numbers of slices."""
    size_G = generator.integers(FEWEST_SLICES, MOST_SLICES + 1, patients)
    return Clusters(unit="person", cluster_N=np.repeat(np.arange(patients), size_G), count=patients)


def draw_correct(generator: np.random.Generator, groups: Clusters, mean_G: Floats, rho: float) -> Floats:
    """Return which slices are correct, as 0 and 1; slices of a patient correlate by rho."""
    chance_N = draw_chances(generator, mean_G, rho)[groups.cluster_N]
    return (generator.random(len(chance_N)) < chance_N).astype(np.float64)


def draw_chances(generator: np.random.Generator, mean_G: Floats, rho: float) -> Floats:
    """Return each patient's probability of a correct slice: beta distributed, variance rho mean (1 - mean)."""
    spread = 1 / rho - 1
    mean_G = np.clip(mean_G, 1e-6, 1 - 1e-6)
    return generator.beta(mean_G * spread, (1 - mean_G) * spread)


def bootstrap_interval(
    generator: np.random.Generator, tally_NK: Floats, groups: Clusters, statistic: Callable[[Floats], Floats]
) -> Interval:
    """Return the percentile bootstrap interval over patients."""
    sum_GK = np.zeros((groups.count, tally_NK.shape[1]))
    np.add.at(sum_GK, groups.cluster_N, tally_NK)
    draw_SG = generator.multinomial(groups.count, np.full(groups.count, 1 / groups.count), RESAMPLES)
    low, high = np.quantile(statistic(draw_SG @ sum_GK), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def contains(truth: float, ours: Interval, plain: Interval) -> dict[str, bool]:
    """Return by implementation whether the interval contains the true value."""
    found = {METHOD: ours, "percentile-bootstrap": plain}
    return {name: one is not None and one[0] <= truth <= one[1] for name, one in found.items()}


if __name__ == "__main__":
    main()
