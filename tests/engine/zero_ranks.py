"""Rank script: steps from the same saved states under every engine and ZeRO stage."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rank_script import with_comm

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.learner import Learner, build_learner
from hsadml_dist.model_factory import build_network

TOTAL, CLASSES, SIDE, BATCH = 40, 5, 16, 24
STATES = (1, 4, 10)
RECIPE = Recipe(
    data=DataConfig(shards="none", image_size=SIDE),
    model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
    loss=LossConfig(name="sphereface"),
    optim=OptimConfig(lr=0.01, warmup_steps=2),
    train=TrainConfig(steps=TOTAL, global_batch=BATCH, seed=3, on_nonfinite="skip"),
    engine=EngineConfig(clip_norm=None),
)
ENGINES = {
    "ddp": EngineConfig(),
    "zero 0": EngineConfig(name="deepspeed", zero_stage=0),
    "zero 1": EngineConfig(name="deepspeed", zero_stage=1),
    "zero 2": EngineConfig(name="deepspeed", zero_stage=2),
    "zero 3": EngineConfig(name="deepspeed", zero_stage=3),
    "offload 2": EngineConfig(name="deepspeed", zero_stage=2, offload_optimizer=True),
    "offload 3": EngineConfig(name="deepspeed", zero_stage=3, offload_optimizer=True),
    "recompute 3": EngineConfig(name="deepspeed", zero_stage=3, activation_checkpointing=True),
}
Groups = dict[str, dict[str, torch.Tensor]]


def body(comm: Comm, case: str) -> Any:
    """Run the named case; ``name:argument`` passes an argument."""
    torch.set_num_threads(1)
    name, _, argument = case.partition(":")
    cases = {
        "steps": one_step_from_each_state,
        "courses": courses,
        "handover": handover,
        "nonfinite": nonfinite,
        "bf16": bf16,
    }
    return cases[name](comm, argument)


def one_step_from_each_state(comm: Comm, names: str) -> dict[Any, Any]:
    """Return gradients, report and state of one step by (variant, engine, step of the saved state)."""
    found = {}
    for layout in ("replicated", "sharded"):
        saved = _saved_states(comm, layout)
        for accumulate in (1, 4):
            for clip in (None, 0.1):
                recipe = _recipe(layout, accumulate, clip)
                for name in names.split(","):
                    learner = learner_of(name, comm, recipe)
                    for step, groups in saved.items():
                        learner.load(groups)
                        found[(layout, accumulate, clip), name, step] = _one_step(learner, comm, step + 1)
    return found


def courses(comm: Comm, names: str) -> dict[str, Any]:
    """Return losses and weights of 20 unclipped steps under each engine, from the same initial weights."""
    found = {}
    for name in names.split(","):
        learner = learner_of(name, comm)
        reports = [learner.step(step, batch_of(step, comm)) for step in range(1, 21)]
        found[name] = {"reports": reports, "state": copied(learner.state())}
    return found


def handover(comm: Comm, argument: str) -> dict[str, Any]:
    """Resume an engine from a saved state, if one is given; save the state after some steps.

    The argument is JSON: engine, load (a path or null), save (a path or null), first and last step.
    """
    job = json.loads(argument)
    recipe = replace(RECIPE, optim=replace(RECIPE.optim, ema_decay=0.9, layer_decay=0.9))
    learner = learner_of(job["engine"], comm, recipe)
    found: dict[str, Any] = {}
    if job["load"]:
        learner.load(torch.load(job["load"], weights_only=True))
        found["loaded"] = whole_state(learner, comm)
    found["reports"] = [learner.step(step, batch_of(step, comm)) for step in range(job["first"], job["last"] + 1)]
    state = whole_state(learner, comm)
    if job["save"] and comm.topology.is_rank_zero:
        torch.save(state, job["save"])
    evaluated = learner.engine.evaluation_model()
    found |= {"state": state, "evaluated": {name: t.clone() for name, t in evaluated.state_dict().items()}}
    return found


def nonfinite(comm: Comm, name: str) -> dict[str, Any]:
    """Return the results of a training with a non-finite step, and of one without that step."""
    skipping, reference = learner_of(name, comm), learner_of(name, comm)
    diagnoses = []
    for step in (1, 2, 3, 4):
        if step == 3:
            before = copied(skipping.state())
            diagnoses = [skipping.step(step, _with_bad_pixel(batch_of(step, comm), comm)).skipped]
            after = copied(skipping.state())
            head_skipped = _skips_nonfinite_head(skipping, comm, step)
        else:
            skipping.step(step, batch_of(step, comm))
            reference.step(step, batch_of(step, comm))
    weight = skipping.engine.nonfinite_weight()
    state, expected = copied(skipping.state()), copied(reference.state())
    return {
        "diagnoses": diagnoses,
        "head_skipped": head_skipped,
        "before": before,
        "after": after,
        "state": state,
        "expected": expected,
        "weight": weight,
    }


def bf16(comm: Comm, names: str) -> dict[str, list[float]]:
    """Return the losses of three steps under autocast."""
    half = replace(RECIPE, engine=replace(RECIPE.engine, precision="bf16"))
    found = {}
    for name in names.split(","):
        for recipe in (RECIPE, half):
            learner = learner_of(name, comm, recipe)
            found[name, recipe.engine.precision] = [learner.step(s, batch_of(s, comm)).loss for s in (1, 2, 3)]
    return found


def learner_of(name: str, comm: Comm, recipe: Recipe = RECIPE) -> Learner:
    """Return a new learner with the named engine; stage 3 partitions all weights, even small ones."""
    asked, chosen = recipe.engine, ENGINES[name]
    engine = replace(chosen, clip_norm=asked.clip_norm, accumulate=asked.accumulate, precision=asked.precision)
    if engine.name == "deepspeed":
        engine = replace(engine, deepspeed_config=str(small_settings()))
    recipe = replace(recipe, engine=engine)
    return build_learner(recipe, build_network(recipe), CLASSES, comm, TOTAL)


def small_settings() -> Path:
    """Return a DeepSpeed JSON that partitions tensors of any size and uses small buckets."""
    path = Path(tempfile.mkdtemp()) / "ds.json"
    zero = {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": 4000, "allgather_bucket_size": 4000}
    path.write_text(json.dumps({"zero_optimization": zero}))
    return path


def batch_of(step: int, comm: Comm) -> Batch:
    """Return the local part of the random batch of a step."""
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(BATCH, 1, SIDE, SIDE, generator=generator)
    mine = comm.topology.rank_range(BATCH)
    label = torch.arange(BATCH) % CLASSES
    keys = tuple(f"{step}-{place}" for place in mine)
    return Batch(image=image[mine.start : mine.stop], label=label[mine.start : mine.stop], keys=keys)


def copied(groups: Groups) -> Groups:
    """Return a copy that later steps do not change."""
    return {group: {name: t.detach().cpu().clone() for name, t in tensors.items()} for group, tensors in groups.items()}


def whole_state(learner: Learner, comm: Comm) -> Groups:
    """Return the state of rank 0 on every rank, as in a checkpoint (the centres are replicated here)."""
    box = [copied(learner.state())]
    if comm.topology.world_size > 1:
        torch.distributed.broadcast_object_list(box)
    return box[0]


def _recipe(layout: Any, accumulate: int, clip: float | None) -> Recipe:
    engine = EngineConfig(accumulate=accumulate, clip_norm=clip)
    return replace(RECIPE, loss=replace(RECIPE.loss, layout=layout), engine=engine)


def _saved_states(comm: Comm, layout: str) -> dict[int, Groups]:
    learner = learner_of("ddp", comm, _recipe(layout, 1, None))
    saved = {}
    for step in range(1, max(STATES) + 1):
        learner.step(step, batch_of(step, comm))
        if step in STATES:
            saved[step] = copied(learner.state())
    return saved


def _one_step(learner: Learner, comm: Comm, step: int) -> dict[str, Any]:
    engine: Any = learner.engine
    taken, apply = {}, engine.apply

    def watched(lr: float) -> None:
        taken.update({name: grad.clone() for name, grad in engine.model_state.gradients()})
        apply(lr)

    engine.apply = watched
    report = learner.step(step, batch_of(step, comm))
    del engine.apply
    return {"report": report, "gradients": taken, "state": copied(learner.state())}


def _with_bad_pixel(batch: Batch, comm: Comm) -> Batch:
    if not comm.topology.is_rank_zero:
        return batch
    image = batch.image.clone()
    image[1, 0, 3, 3] = math.nan
    return replace(batch, image=image)


def _skips_nonfinite_head(learner: Learner, comm: Comm, step: int) -> bool:
    """Return whether a step is skipped if only the gradient of the head is not finite."""
    head: Any = learner.head
    norm = head.grad_norm
    head.grad_norm = lambda: norm() * math.inf
    skipped = learner.step(step, batch_of(step, comm)).skipped is not None
    del head.grad_norm
    return skipped


if __name__ == "__main__":
    with_comm(body)
