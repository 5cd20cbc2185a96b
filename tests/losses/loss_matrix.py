"""Jobs for the ranks, and the errors of their results relative to the slow loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from hsadml_dist.losses.centres import initial_rows
from hsadml_dist.losses.margins import build_margin
from tests.losses import slow_loop
from tests.losses.loss_cases import CASES, MODES, NORMS, STEP

WORLDS = (1, 2, 3, 4)
LAYOUTS = ("replicated", "sharded")
SPREADS = {
    "even": {1: (12,), 2: (6, 6), 3: (4, 4, 4), 4: (3, 3, 3, 3)},
    "uneven": {2: (5, 7), 3: (2, 7, 3), 4: (6, 1, 2, 3)},
    "an empty rank": {2: (0, 12), 3: (5, 0, 7), 4: (4, 1, 0, 7)},
    "C < W": {2: (6, 6), 3: (4, 4, 4), 4: (3, 3, 3, 3)},
}
"""Number of samples on each rank, by world size."""

SEED, SAMPLES, IN, DIM, CLASSES, MANY = 1, 12, 7, 6, 5, 9
RATE = 0.5
ZERO = 1e-14
"""Values below this count as 0 in the slow loop."""


@dataclass(frozen=True, kw_only=True)
class LossJob:
    """One way of computing one loss."""

    case: str
    layout: str
    mode: str
    spread: str
    shares: tuple[int, ...]
    classes: int
    accumulate: int
    rate: float
    backward: str


def jobs(world: int) -> list[LossJob]:
    """Return the jobs of one group of ranks."""
    variants = [*_all_classes(world), *_sampled(world)]
    return [
        LossJob(case=case, layout=layout, **variant)
        for case, layout in itertools.product(CASES, LAYOUTS)
        for variant in variants
    ]


def _all_classes(world: int) -> Iterator[dict[str, Any]]:
    # Each spread is combined with both backward modes, with and without accumulation.
    turns = itertools.cycle(("store", "stream", "stream", "store"))
    spreads = [name for name, by_world in SPREADS.items() if world in by_world]
    for spread, mode, accumulate in itertools.product(spreads, MODES, (1, 2)):
        classes = world - 1 if spread == "C < W" else CLASSES
        yield _variant(world, spread, accumulate) | {
            "mode": mode,
            "classes": classes,
            "rate": 1.0,
            "backward": next(turns),
        }


def _sampled(world: int) -> Iterator[dict[str, Any]]:
    spreads = ("even", "even") if world == 1 else ("uneven", "an empty rank")
    for spread, accumulate, backward in zip(spreads, (2, 1), ("store", "stream"), strict=True):
        yield _variant(world, spread, accumulate) | {
            "mode": "exact",
            "classes": MANY,
            "rate": RATE,
            "backward": backward,
        }


def _variant(world: int, spread: str, accumulate: int) -> dict[str, Any]:
    return {"spread": spread, "shares": SPREADS[spread][world], "accumulate": accumulate}


@cache
def batch(classes: int) -> Mapping[str, torch.Tensor]:
    """Return samples (N, IN) with labels (N,), and a linear backbone (IN, DIM); fp64."""
    generator = torch.Generator().manual_seed(classes)
    x, backbone = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((SAMPLES, IN), (IN, DIM))
    )
    return {"x": x, "label": torch.arange(SAMPLES) * 4 % classes, "backbone": backbone}


def rank_inputs(world: int) -> dict[str, Any]:
    """Return the input of the rank script as plain values, because it cannot import this module."""
    plain = [SimpleNamespace(**vars(job), settings=CASES[job.case].settings(job.mode)) for job in jobs(world)]
    batches = {classes: dict(batch(classes)) for classes in {job.classes for job in jobs(world)}}
    return {"jobs": plain, "batches": batches, "step": STEP, "seed": SEED, "norms": NORMS}


@cache
def expected(case: str, mode: str, classes: int, rate: float) -> Mapping[str, torch.Tensor]:
    """Return the mean loss and gradients of the global batch, computed by the slow loop."""
    data, leaves = batch(classes), _leaves(case, classes)
    drawn = {c for c in range(classes) if slow_loop.is_drawn(c, rate=rate, seed=SEED, step=STEP)}
    losses = slow_loop.losses(
        data["x"] @ leaves["backbone"],
        leaves["centres"],
        data["label"],
        CASES[case].ruled(mode),
        bias=leaves.get("bias"),
        norms=NORMS,
        drawn=drawn,
    )
    mean = sum(losses) / len(losses)
    return {"loss": mean.detach()} | dict(zip(leaves, torch.autograd.grad(mean, list(leaves.values())), strict=True))


def _leaves(case: str, classes: int) -> dict[str, torch.Tensor]:
    centres = initial_rows(range(classes), DIM, SEED)
    start = build_margin(*CASES[case].settings("exact")).reducer.initial_bias(classes)
    leaves = {"backbone": batch(classes)["backbone"], "centres": centres}
    if start is not None:
        leaves["bias"] = torch.tensor(start)
    return {name: leaf.double().clone().requires_grad_() for name, leaf in leaves.items()}


def errors(job: LossJob, answers: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """Return relative errors by name; absolute ones where the reference is 0, as with a single class."""
    reference, ours = expected(job.case, job.mode, job.classes, job.rate), combine(job.layout, answers)
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in reference.items()
    }
    return {name: _error(ours[name], value) for name, value in reference.items()}


def combine(layout: str, answers: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Combine the results of the ranks: average them, but concatenate sharded centres."""
    names = [name for name in answers[0] if name != "norms"]
    mean = {
        name: torch.stack([answer[name] for answer in answers]).mean(dim=0)
        for name in names
        if not (name == "centres" and layout == "sharded")
    }
    return mean if layout == "replicated" else mean | {"centres": torch.cat([answer["centres"] for answer in answers])}


def _error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    size = float(reference.norm())
    return float((ours - reference).norm()) / (size if size > ZERO else 1.0)
