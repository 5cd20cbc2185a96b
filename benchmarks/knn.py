"""Compare the exact nearest-neighbour search with FAISS's exact index and scikit-learn's brute force.

All search the same fp32 unit rows with the same number of threads, interleaved in a new random order for each round.
Before timing, the neighbours of each are compared with a slow fp64 search. Ours must agree at every position; FAISS and
scikit-learn round and may swap neighbours at nearly equal distances: such swaps are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import sklearn
import threadpoolctl
import torch
from sklearn.neighbors import NearestNeighbors

from hsadml_dist.evaluation.knn import nearest, round_to_grid, search

SEED = 0
BLOCK = 8192

Neighbours = Callable[[], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement: a search problem and its implementations.

    Attributes:
        name: Title of the case.
        ways: Implementation -> function that returns positions (Q, k).
    """

    name: str
    ways: dict[str, Neighbours]


def main() -> None:
    """Compare results, measure, print medians, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--references", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with threadpoolctl.threadpool_limits(options.threads):
        cases = [case for dim in options.dims for case in compare(dim, options)]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": _machine(options.threads), "cases": cases}, indent=2)
        options.json.write_text(text + "\n")


def compare(dim: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """Check and time all implementations for rows of ``dim`` components; return the cases of ``--json``."""
    generator = torch.Generator().manual_seed(SEED)
    both = torch.randn(options.queries + options.references, dim, generator=generator)
    both = torch.nn.functional.normalize(both)
    queries, references = both[: options.queries], both[options.queries :].clone()
    truth = slow_neighbours(queries, references, options.k)
    shape = f"{options.queries} queries, {options.references} references, D {dim}, k {options.k}"
    entries = []
    for case in (
        _search_only(queries, references, options.k, shape),
        _from_rows(queries, references, options.k, shape),
    ):
        swapped = {name: _swapped(find(), truth) for name, find in case.ways.items()}
        if swapped["ours"]:
            raise SystemExit(f"{case.name}: ours differs from the fp64 search in {swapped['ours']} places")
        seconds = _take_turns(case.ways, options.rounds)
        _say(case.name, seconds, swapped)
        entries += [
            {"case": case.name, "implementation": name, "seconds": seconds[name], "places_unlike_fp64": swapped[name]}
            for name in case.ways
        ]
    return entries


def slow_neighbours(queries_QD: torch.Tensor, references_RD: torch.Tensor, k: int) -> np.ndarray:
    """Return the positions (Q, k) by cosine in fp64, sorting the whole gallery for each query."""
    unit = torch.nn.functional.normalize(references_RD.double())
    directions = torch.nn.functional.normalize(queries_QD.double())
    return np.stack([(unit @ query).sort(descending=True, stable=True).indices[:k].numpy() for query in directions])


def _search_only(queries: torch.Tensor, references: torch.Tensor, k: int, shape: str) -> Case:
    """Search a prepared gallery: our grid, FAISS's index, scikit-learn's estimator."""
    grid, no_bias = round_to_grid(references), torch.zeros(len(references), dtype=torch.float64)
    on_ours = round_to_grid(queries)
    index = faiss.IndexFlatIP(references.shape[1])
    index.add(references.numpy())
    brute = NearestNeighbors(metric="cosine", algorithm="brute").fit(references.numpy())

    def by_us() -> np.ndarray:
        return search(on_ours, grid, no_bias, k=k, block=BLOCK)[1].numpy()

    ways: dict[str, Neighbours] = {
        "ours": by_us,
        "faiss IndexFlatIP": lambda: index.search(queries.numpy(), k)[1],
        "sklearn brute cosine": lambda: brute.kneighbors(queries.numpy(), k, return_distance=False),
    }
    return Case(name=f"search only, {shape}", ways=ways)


def _from_rows(queries: torch.Tensor, references: torch.Tensor, k: int, shape: str) -> Case:
    """Search from raw rows, preparation included; no implementation knows that the rows have unit length."""

    def by_faiss() -> np.ndarray:
        unit = [rows.numpy().copy() for rows in (queries, references)]
        for rows in unit:
            faiss.normalize_L2(rows)
        index = faiss.IndexFlatIP(references.shape[1])
        index.add(unit[1])
        return index.search(unit[0], k)[1]

    def by_sklearn() -> np.ndarray:
        brute = NearestNeighbors(metric="cosine", algorithm="brute").fit(references.numpy())
        return brute.kneighbors(queries.numpy(), k, return_distance=False)

    def by_us() -> np.ndarray:
        return nearest(queries, references, k=k, block=BLOCK)[1].numpy()

    ways: dict[str, Neighbours] = {
        "ours": by_us,
        "faiss IndexFlatIP": by_faiss,
        "sklearn brute cosine": by_sklearn,
    }
    return Case(name=f"build and search, {shape}", ways=ways)


def _take_turns(ways: dict[str, Neighbours], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(SEED)
    for _ in range(rounds):
        for name in order.sample(sorted(ways), len(ways)):
            began = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def _swapped(found_Qk: np.ndarray, truth_Qk: np.ndarray) -> int:
    return int((found_Qk != truth_Qk).sum())


def _say(case: str, seconds: dict[str, list[float]], swapped: dict[str, int]) -> None:
    ours = statistics.median(seconds["ours"])
    sys.stdout.write(f"{case}\n")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        sys.stdout.write(
            f"  {name:22} {1e3 * median:8.1f} ms (fastest {1e3 * min(taken):.1f}); "
            f"ours takes {ours / median:.2f} times as long; {swapped[name]} places unlike fp64\n"
        )


def _machine(threads: int) -> dict[str, object]:
    versions = {"torch": torch.__version__, "faiss": faiss.__version__, "scikit-learn": sklearn.__version__}
    return {"processor_count": os.cpu_count(), "threads": threads} | versions


if __name__ == "__main__":
    main()
