"""Trainings of a few steps on drawn batches, from build to state, as the ranks of a job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from rank_script import with_comm
from torch.nn.parallel import DistributedDataParallel

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine import learner
from hsadml_dist.engine.ddp import DdpEngine
from hsadml_dist.engine.learner import Learner, build_learner
from hsadml_dist.model_factory import build_network

TOTAL, CLASSES, SIDE = 10, 3, 16
RECIPE = Recipe(
    data=DataConfig(shards="none", image_size=SIDE),
    model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
    optim=OptimConfig(lr=0.05, warmup_steps=2),
    train=TrainConfig(steps=TOTAL, global_batch=12, seed=3),
    engine=EngineConfig(precision="fp64", clip_norm=None),
)


def body(comm: Comm, case: str) -> Any:
    """Return what the case's function gives."""
    torch.set_num_threads(1)
    return {"train": train_in_all_ways, "layouts": train_in_all_layouts, "resume": resume, "clip": clip}[case](comm)


def train_in_all_ways(comm: Comm) -> dict[str, Any]:
    """Return state and reports after three steps: accumulated or not, and with SGD, AdamW and bf16."""
    exact = RECIPE
    thirds = replace(exact, engine=replace(exact.engine, accumulate=3))
    sgd = replace(exact, optim=replace(exact.optim, name="sgd"))
    bf16 = replace(exact, engine=replace(exact.engine, precision="bf16"))
    fp32 = replace(exact, engine=replace(exact.engine, precision="fp32"))
    recipes = {"plain": exact, "thirds": thirds, "sgd": sgd, "sgd thirds": _thirds(sgd), "bf16": bf16, "fp32": fp32}
    return {name: _trained(recipe, comm, 3) for name, recipe in recipes.items()}


def train_in_all_layouts(comm: Comm) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what three steps come to, by loss and layout: reports, all centres, and the head's other tensors."""
    losses = {
        "sphereface": LossConfig(name="sphereface"),
        "sphereface2 and energy": LossConfig(name="sphereface2", energy=0.1),
        "adaface": LossConfig(name="adaface", norm_momentum=0.5),
        "sampled": LossConfig(name="cosface", sample_rate=0.5),
    }
    answers = {}
    for name, loss in losses.items():
        answers[name, "replicated"] = _headed(replace(RECIPE, loss=replace(loss, layout="replicated")), comm)
        sharded = replace(RECIPE, loss=replace(loss, layout="sharded"))
        answers[name, "sharded"] = _headed(_thirds(sharded), comm)
    return answers


def resume(comm: Comm) -> dict[str, Any]:
    """Return the states of an uninterrupted training and of resumed ones, with and without settled buckets."""
    recipe = replace(RECIPE, engine=replace(RECIPE.engine, precision="fp32"))
    whole = _learner(recipe, comm)
    _steps(whole, comm, 1, 2)
    saved = _copied(whole.state())
    resumed = _learner(recipe, comm)
    resumed.load(saved)
    DdpEngine.warm_up_buckets = _do_nothing  # type: ignore[method-assign]
    learner.check_gradients = _do_nothing  # another backward pass before the first step
    unsettled = _learner(recipe, comm)
    unsettled.load(saved)
    loaded = _copied(resumed.state())
    reports = [_steps(one, comm, 3, 3) for one in (whole, resumed, unsettled)]
    states = [_copied(one.state()) for one in (whole, resumed, unsettled)]
    return {"saved": saved, "loaded": loaded, "states": states, "reports": reports}


def clip(comm: Comm) -> dict[str, Any]:
    """Return what one SGD step without momentum changed, clipped and not."""
    plain = replace(RECIPE, optim=OptimConfig(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant"))
    clipped = replace(plain, engine=replace(plain.engine, clip_norm=0.01))
    return {"plain": _change(plain, comm), "clipped": _change(clipped, comm)}


def batch_of(step: int, comm: Comm) -> Batch:
    """Return this rank's part of a step's batch, drawn from the step alone."""
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(12, 1, SIDE, SIDE, generator=generator)
    mine = comm.topology.rank_range(12)
    label = torch.arange(12) % CLASSES
    return Batch(image=image[mine.start : mine.stop], label=label[mine.start : mine.stop], keys=("",) * len(mine))


def _thirds(recipe: Recipe) -> Recipe:
    return replace(recipe, engine=replace(recipe.engine, accumulate=3))


def _learner(recipe: Recipe, comm: Comm) -> Learner:
    return build_learner(recipe, build_network(recipe), CLASSES, comm, TOTAL)


def _steps(learner: Learner, comm: Comm, first: int, last: int) -> list[Any]:
    return [learner.step(step, batch_of(step, comm)) for step in range(first, last + 1)]


def _trained(recipe: Recipe, comm: Comm, steps: int) -> dict[str, Any]:
    learner = _learner(recipe, comm)
    with mock.patch.object(
        DistributedDataParallel, "no_sync", autospec=True, side_effect=DistributedDataParallel.no_sync
    ) as no_sync:
        reports = _steps(learner, comm, 1, steps)
    return {"reports": reports, "state": _copied(learner.state()), "quiet": no_sync.call_count}


def _headed(recipe: Recipe, comm: Comm) -> dict[str, Any]:
    learner = _learner(recipe, comm)
    reports = _steps(learner, comm, 1, 3)
    others = {name: group for name, group in _copied(learner.head.state()).items() if name.startswith("head")}
    rows = len(learner.head.loss.centres.weight)
    return {"reports": reports, "centres": learner.head.gather_centres().clone(), "rows": rows, **others}


def _change(recipe: Recipe, comm: Comm) -> dict[str, Any]:
    learner = _learner(recipe, comm)
    before = _copied(learner.state())
    report = _steps(learner, comm, 1, 1)[0]
    after = learner.state()
    changes = {
        group: torch.cat([(after[group][name] - value).flatten() for name, value in before[group].items()])
        for group in ("model", "centres")
    }
    return {"report": report, **changes}


def _copied(state: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    # Contiguous, as a checkpoint holds them.
    return {group: {n: t.detach().contiguous().clone() for n, t in tensors.items()} for group, tensors in state.items()}


def _do_nothing(*parts: Any) -> None:
    """Stand in for what a test shows to be needed."""


if __name__ == "__main__":
    with_comm(body)
