"""Rank script: trainings with a non-finite step, and reference trainings that omit this step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from rank_script import with_comm
from torch import nn

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.learner import Learner, build_learner
from hsadml_dist.errors import NumericalError
from hsadml_dist.losses.distributed_loss import DistributedLoss
from hsadml_dist.losses.margins import MarginSettings, build_margin
from hsadml_dist.model_factory import build_network
from hsadml_dist.models.network import EmbeddingNet, InputSpec

TOTAL, CLASSES, SIDE, SIZE = 10, 3, 8, 12
BAD, LAST = 3, 4
RECIPE = Recipe(
    data=DataConfig(shards="none", image_size=SIDE),
    model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
    loss=LossConfig(name="cosface", layout="replicated"),
    optim=OptimConfig(lr=0.05, warmup_steps=2),
    train=TrainConfig(steps=TOTAL, global_batch=SIZE, seed=3, on_nonfinite="skip"),
    engine=EngineConfig(precision="fp32"),
)


class BatchDependent(nn.Module):
    """Returns NaN for a single sample in training mode, like a batch norm with one value per channel."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows, or NaN for a single one in training mode."""
        return rows * (1 + 0 * rows.std(dim=0)) if self.training else rows


def recipes() -> dict[str, Recipe]:
    """Return recipes for every precision, accumulation, optimizer, layout and kind of head."""
    adaface = LossConfig(name="adaface", norm_momentum=0.5, layout="replicated")
    return {
        "fp32": RECIPE,
        "bf16": replace(RECIPE, engine=replace(RECIPE.engine, precision="bf16")),
        "fp64": replace(RECIPE, engine=replace(RECIPE.engine, precision="fp64")),
        "accumulated": replace(RECIPE, engine=replace(RECIPE.engine, accumulate=2)),
        "sgd, not clipped": replace(
            RECIPE, optim=replace(RECIPE.optim, name="sgd"), engine=replace(RECIPE.engine, clip_norm=None)
        ),
        "adaface": replace(RECIPE, loss=adaface),
        "adaface, sharded, accumulated": replace(
            RECIPE, loss=replace(adaface, layout="sharded"), engine=replace(RECIPE.engine, accumulate=2)
        ),
        "sphereface2 and energy, sharded": replace(
            RECIPE, loss=LossConfig(name="sphereface2", energy=0.1, layout="sharded")
        ),
        "batch norm and dropout": RECIPE,
    }


def body(comm: Comm, case: str) -> Any:
    """Run the named case."""
    torch.set_num_threads(1)
    return {"skip": skip_all_variants, "causes": causes, "stop": stops}[case](comm)


def skip_all_variants(comm: Comm) -> dict[str, dict[str, Any]]:
    """Return the results of a training with a bad pixel in one step, and of one without that step, by recipe."""
    answers = {}
    for number, (name, recipe) in enumerate(recipes().items()):
        value = (math.nan, -math.inf)[number % 2]
        guarded, reference = _learner(name, recipe, comm), _learner(name, recipe, comm)
        reports, states = [], []
        for step in range(1, LAST + 1):
            batch = batch_of(step, comm)
            reports.append(guarded.step(step, poisoned(batch, comm, value) if step == BAD else batch))
            states.append(copied(guarded))
            if step != BAD:
                reference.step(step, batch_of(step, comm))
        last = copied(reference)
        answers[name] = {"reports": reports, "states": states, "reference": last, "modes": _modes(guarded)}
    return answers


def causes(comm: Comm) -> dict[str, Any]:
    """Return the diagnoses of steps that are not finite for one reason each."""
    return {
        "two samples": _diagnose(comm, RECIPE, lambda learner, batch: _two_bad(batch, comm)),
        "weight": _diagnose(comm, RECIPE, _corrupt_weight),
        "buffer": _diagnose(comm, RECIPE, _corrupt_buffer, name="batch norm"),
        "centre": _diagnose(comm, replace(RECIPE, loss=LossConfig(layout="sharded")), _corrupt_centre),
        "loss": _diagnose(comm, RECIPE, lambda learner, batch: _scale(learner, comm, 3e38)),
        "norm": _diagnose(comm, RECIPE, lambda learner, batch: _scale(learner, comm, 1e30)),
        "gradient": _diagnose(comm, RECIPE, _corrupt_gradient),
    }


def stops(comm: Comm) -> dict[str, Any]:
    """Return how trainings end at once or at the limit, and whether the last step changed the state."""
    stopping = replace(RECIPE, train=replace(RECIPE.train, on_nonfinite="stop"))
    limited = replace(RECIPE, train=replace(RECIPE.train, skip_limit=2))
    immediately = _train_until_error(_learner("", stopping, comm), comm, bad={BAD})
    at_limit = _train_until_error(_learner("", limited, comm), comm, bad={2, 3, 5, 6, 7})
    cut = _learner("", limited, comm)
    first = _train_until_error(cut, comm, bad={2, 3, 5, 6, 7}, last=6)
    again = _learner("", limited, comm)
    again.load(copied(cut))
    again.guard.consecutive_skips = cut.guard.consecutive_skips
    return {
        "immediately": immediately,
        "limit": at_limit,
        "cut": (first, _train_until_error(again, comm, bad={7}, first=7)),
    }


def batch_of(step: int, comm: Comm) -> Batch:
    """Return the local part of the random batch of a step."""
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(SIZE, 1, SIDE, SIDE, generator=generator)
    mine = comm.topology.rank_range(SIZE)
    label = torch.arange(SIZE) % CLASSES
    keys = tuple(f"{step}-{place}" for place in mine)
    return Batch(image=image[mine.start : mine.stop], label=label[mine.start : mine.stop], keys=keys)


def poisoned(batch: Batch, comm: Comm, value: float) -> Batch:
    """Return the batch with one bad pixel in the last sample of the last rank."""
    if comm.topology.rank == comm.topology.world_size - 1:
        batch.image[-1, 0, 2, 3] = value
    return batch


def copied(learner: Learner) -> dict[str, dict[str, torch.Tensor]]:
    """Return a copy of the state."""
    state = learner.state()
    return {group: {n: t.detach().contiguous().clone() for n, t in tensors.items()} for group, tensors in state.items()}


def _learner(name: str, recipe: Recipe, comm: Comm) -> Learner:
    network = build_network(recipe)
    if name.startswith("batch norm"):
        torch.manual_seed(0)
        features = 4 * (SIDE - 2) ** 2
        layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), BatchDependent())
        network = EmbeddingNet(nn.Sequential(*layers), features, 8, dropout=0.3, spec=InputSpec(image_size=SIDE))
    return build_learner(recipe, network, CLASSES, comm, TOTAL)


def _modes(learner: Learner) -> set[bool]:
    return {layer.training for layer in learner.engine.model.modules()}


def _diagnose(comm: Comm, recipe: Recipe, corrupt: Any = None, name: str = "") -> dict[str, Any]:
    learner = _learner(name, recipe, comm)
    batch = batch_of(1, comm)
    if corrupt is not None:
        corrupt(learner, batch)
    before = copied(learner)
    report = learner.step(1, batch)
    return {"report": report, "before": before, "after": copied(learner)}


def _two_bad(batch: Batch, comm: Comm) -> None:
    batch.image[0, 0, 0, 0] = math.inf if comm.topology.is_rank_zero else 0.0
    poisoned(batch, comm, math.nan)


def _corrupt_weight(learner: Learner, batch: Batch) -> None:
    learner.engine.model.get_parameter("neck.weight").data[1, 2] = math.inf


def _corrupt_buffer(learner: Learner, batch: Batch) -> None:
    """Set NaN in a buffer that only evaluation reads, and Inf in a weight, so that training notices it."""
    learner.engine.model.get_buffer("backbone.1.running_var")[0] = math.nan
    learner.engine.model.get_parameter("neck.bias").data[0] = math.inf


def _corrupt_centre(learner: Learner, batch: Batch) -> None:
    """Set NaN in the centre of the last class, which only the last rank holds."""
    if learner.head.loss.centres.rows.stop == CLASSES:
        learner.head.loss.centres.weight.data[-1, 0] = math.nan


def _scale(learner: Learner, comm: Comm, scale: float) -> None:
    """Scale the loss such that sums or squares overflow, but not the loss of a single sample."""
    margin = build_margin("cosface", MarginSettings(scale=scale))
    learner.head.loss = DistributedLoss(learner.head.loss.centres, margin, comm)


def _corrupt_gradient(learner: Learner, batch: Batch) -> None:
    """Make the gradient of the neck bias infinite with a finite loss: a square root at zero."""

    def forward(image: torch.Tensor, net: Any = learner.engine.model.forward) -> torch.Tensor:
        bias = learner.engine.model.get_parameter("neck.bias")
        return net(image) + (bias - bias.detach()).abs().sqrt()

    learner.engine.model.forward = forward  # type: ignore[method-assign]


def _train_until_error(
    learner: Learner, comm: Comm, bad: set[int], first: int = 1, last: int = TOTAL
) -> tuple[list[int], tuple[str, int] | None, bool]:
    """Return the skipped steps, the error that ended the training, and whether its step left the state unchanged."""
    skipped = []
    for step in range(first, last + 1):
        batch, before = batch_of(step, comm), copied(learner)
        try:
            report = learner.step(step, poisoned(batch, comm, math.nan) if step in bad else batch)
        except NumericalError as fault:
            return skipped, (str(fault), fault.step), equal(before, copied(learner))
        if report.skipped is not None:
            skipped.append(step)
    return skipped, None, False


def equal(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> bool:
    """Return whether two states are bit-identical, including NaN."""
    if [(g, list(one[g])) for g in one] != [(g, list(other[g])) for g in other]:
        return False
    pairs = ((value, other[group][name]) for group in one for name, value in one[group].items())
    return all(a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs)


if __name__ == "__main__":
    with_comm(body)
