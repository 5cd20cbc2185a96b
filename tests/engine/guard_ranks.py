"""Trainings in which one step is not finite, beside slow obvious ones that never do that step."""

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


class NeedsOthers(nn.Module):
    """Knows no single sample while it is in training mode, as batch norms of one value a channel."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows; of a single one, no numbers."""
        return rows * (1 + 0 * rows.std(dim=0)) if self.training else rows


def recipes() -> dict[str, Recipe]:
    """Return what the guard must hold for: every precision, accumulation, optimiser, layout and kind of head."""
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
    """Return what the case's function gives."""
    torch.set_num_threads(1)
    return {"skip": skipped_in_all_ways, "causes": causes, "stop": stops}[case](comm)


def skipped_in_all_ways(comm: Comm) -> dict[str, dict[str, Any]]:
    """Return, by recipe, what a training with a bad pixel in one step comes to, and one without the step."""
    answers = {}
    for number, (name, recipe) in enumerate(recipes().items()):
        value = (math.nan, -math.inf)[number % 2]
        guarded, obvious = _learner(name, recipe, comm), _learner(name, recipe, comm)
        reports, states = [], []
        for step in range(1, LAST + 1):
            batch = batch_of(step, comm)
            reports.append(guarded.step(step, poisoned(batch, comm, value) if step == BAD else batch))
            states.append(copied(guarded))
            if step != BAD:
                obvious.step(step, batch_of(step, comm))
        last = copied(obvious)
        answers[name] = {"reports": reports, "states": states, "obvious": last, "modes": _modes(guarded)}
    return answers


def causes(comm: Comm) -> dict[str, Any]:
    """Return the findings of steps that are not finite for one reason each."""
    return {
        "two samples": _finding(comm, RECIPE, lambda learner, batch: _two_bad(batch, comm)),
        "weight": _finding(comm, RECIPE, _spoil_weight),
        "buffer": _finding(comm, RECIPE, _spoil_buffer, name="batch norm"),
        "centre": _finding(comm, replace(RECIPE, loss=LossConfig(layout="sharded")), _spoil_centre),
        "loss": _finding(comm, RECIPE, lambda learner, batch: _scale(learner, comm, 3e38)),
        "norm": _finding(comm, RECIPE, lambda learner, batch: _scale(learner, comm, 1e30)),
        "gradient": _finding(comm, RECIPE, _spoil_gradient),
    }


def stops(comm: Comm) -> dict[str, Any]:
    """Return what ranks say that stop, at once or at the limit, and whether that left a trace."""
    stopping = replace(RECIPE, train=replace(RECIPE.train, on_nonfinite="stop"))
    limited = replace(RECIPE, train=replace(RECIPE.train, skip_limit=2))
    at_once = _until_the_end(_learner("", stopping, comm), comm, bad={BAD})
    in_the_end = _until_the_end(_learner("", limited, comm), comm, bad={2, 3, 5, 6, 7})
    cut = _learner("", limited, comm)
    first = _until_the_end(cut, comm, bad={2, 3, 5, 6, 7}, last=6)
    again = _learner("", limited, comm)
    again.load(copied(cut))
    again.guard.consecutive_skips = cut.guard.consecutive_skips
    return {"at once": at_once, "limit": in_the_end, "cut": (first, _until_the_end(again, comm, bad={7}, first=7))}


def batch_of(step: int, comm: Comm) -> Batch:
    """Return this rank's part of a step's batch, drawn from the step alone."""
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(SIZE, 1, SIDE, SIDE, generator=generator)
    mine = comm.topology.rank_range(SIZE)
    label = torch.arange(SIZE) % CLASSES
    keys = tuple(f"{step}-{place}" for place in mine)
    return Batch(image=image[mine.start : mine.stop], label=label[mine.start : mine.stop], keys=keys)


def poisoned(batch: Batch, comm: Comm, value: float) -> Batch:
    """Return the batch with one pixel of the last rank's last sample spoilt."""
    if comm.topology.rank == comm.topology.world_size - 1:
        batch.image[-1, 0, 2, 3] = value
    return batch


def copied(learner: Learner) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state, apart from what the learner goes on changing."""
    state = learner.state()
    return {group: {n: t.detach().contiguous().clone() for n, t in tensors.items()} for group, tensors in state.items()}


def _learner(name: str, recipe: Recipe, comm: Comm) -> Learner:
    network = build_network(recipe)
    if name.startswith("batch norm"):
        torch.manual_seed(0)
        features = 4 * (SIDE - 2) ** 2
        layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), NeedsOthers())
        network = EmbeddingNet(nn.Sequential(*layers), features, 8, dropout=0.3, spec=InputSpec(image_size=SIDE))
    return build_learner(recipe, network, CLASSES, comm, TOTAL)


def _modes(learner: Learner) -> set[bool]:
    return {layer.training for layer in learner.engine.model.modules()}


def _finding(comm: Comm, recipe: Recipe, spoil: Any = None, name: str = "") -> dict[str, Any]:
    learner = _learner(name, recipe, comm)
    batch = batch_of(1, comm)
    if spoil is not None:
        spoil(learner, batch)
    before = copied(learner)
    report = learner.step(1, batch)
    return {"report": report, "before": before, "after": copied(learner)}


def _two_bad(batch: Batch, comm: Comm) -> None:
    batch.image[0, 0, 0, 0] = math.inf if comm.topology.is_rank_zero else 0.0
    poisoned(batch, comm, math.nan)


def _spoil_weight(learner: Learner, batch: Batch) -> None:
    learner.engine.model.get_parameter("neck.weight").data[1, 2] = math.inf


def _spoil_buffer(learner: Learner, batch: Batch) -> None:
    """Spoil what evaluation alone reads, and by a weight what training reads, or nothing would be found."""
    learner.engine.model.get_buffer("backbone.1.running_var")[0] = math.nan
    learner.engine.model.get_parameter("neck.bias").data[0] = math.inf


def _spoil_centre(learner: Learner, batch: Batch) -> None:
    """Spoil the last class's centre, which the last rank alone holds."""
    if learner.head.loss.centres.rows.stop == CLASSES:
        learner.head.loss.centres.weight.data[-1, 0] = math.nan


def _scale(learner: Learner, comm: Comm, scale: float) -> None:
    """Scale the loss by so much that sums or squares overflow, and no single sample's loss does."""
    margin = build_margin("cosface", MarginSettings(scale=scale))
    learner.head.loss = DistributedLoss(learner.head.loss.centres, margin, comm)


def _spoil_gradient(learner: Learner, batch: Batch) -> None:
    """Let the loss stay finite and the gradient of the neck's bias not: a root at zero."""

    def forward(image: torch.Tensor, net: Any = learner.engine.model.forward) -> torch.Tensor:
        bias = learner.engine.model.get_parameter("neck.bias")
        return net(image) + (bias - bias.detach()).abs().sqrt()

    learner.engine.model.forward = forward  # type: ignore[method-assign]


def _until_the_end(
    learner: Learner, comm: Comm, bad: set[int], first: int = 1, last: int = TOTAL
) -> tuple[list[int], tuple[str, int] | None, bool]:
    """Return the steps that were skipped, what ended the training, and whether that step left everything as it was."""
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
    """Tell whether two states are the same to the last bit, also where they are not finite."""
    if [(g, list(one[g])) for g in one] != [(g, list(other[g])) for g in other]:
        return False
    pairs = ((value, other[group][name]) for group in one for name, value in one[group].items())
    return all(a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs)


if __name__ == "__main__":
    with_comm(body)
