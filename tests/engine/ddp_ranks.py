"""Rank script: options of the DDP engine on a small network of transformer-like blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rank_script import with_comm
from torch import nn

from hsadml_dist.config.recipe import OptimConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine import ddp
from hsadml_dist.engine.base import LossFn
from hsadml_dist.engine.ddp import DdpEngine, DdpOptions
from hsadml_dist.models.activations import checkpoint_activations
from hsadml_dist.optim import build_optimizer

BATCH, WIDTH, OUT = 12, 10, 3
DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
Variant = tuple[str, ...]


class Net(nn.Module):
    """``(B, 1, 4, 4) -> (B, OUT)``: a convolution, two residual blocks, a neck; optionally with dropout."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(2)
        )
        if "dropout" in variant:
            self.blocks[1].append(nn.Dropout(0.3))
        self.neck = nn.Linear(WIDTH, OUT)
        if "unused" in variant:
            self.lost = nn.Parameter(torch.ones(7))
        if "frozen" in variant:
            self.stem.requires_grad_(False)
            self.blocks[0][1].weight.requires_grad_(False)
        if "checkpointing" in variant:
            assert checkpoint_activations(self) == len(self.blocks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return embeddings."""
        x = self.stem(image).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.neck(x.mean(dim=1))


def body(comm: Comm, case: str) -> Any:
    """Run the named case."""
    torch.set_num_threads(1)
    name, _, rest = case.partition(" ")
    cases: dict[str, Callable[..., Any]] = {
        "variants": all_variants,
        "resume": resume,
        "averages": averages,
        "save": save,
        "load": load,
        "compiled": compiled,
        "traced": traced,
    }
    return cases[name](comm, *rest.split())


def all_variants(comm: Comm) -> dict[Variant, dict[str, Any]]:
    """Return losses, gradient norms and state of three steps, and the gradients of another batch, by variant."""
    variants: list[Variant] = [
        (),
        ("accumulated",),
        ("static",),
        ("static", "accumulated"),
        ("static", "accumulated", "frozen", "unused"),
        ("frozen", "accumulated"),
        ("dropout", "accumulated"),
        ("checkpointing", "accumulated", "dropout"),
        ("static", "checkpointing", "accumulated", "dropout"),
        ("checkpointing",),
        ("bf16", "accumulated"),
        ("bf16", "accumulated", "static"),
        ("bf16", "accumulated", "checkpointing"),
        ("ema", "accumulated"),
        ("ema", "frozen", "sgd"),
    ]
    return {variant: _trained(variant, comm) for variant in variants}


def resume(comm: Comm) -> dict[Variant, list[dict[str, Any]]]:
    """Return the states after three steps by variant: uninterrupted, resumed, and resumed with one warm-up pass."""
    variants: list[Variant] = [
        ("fp32", "static", "accumulated", "frozen", "unused"),
        ("fp32", "ema", "frozen"),
        ("fp32", "static", "ema", "checkpointing"),
    ]
    return {variant: _resumed(variant, comm) for variant in variants}


def compiled(comm: Comm) -> dict[Variant, dict[str, Any]]:
    """Return the results with and without compilation, and after a resume, by variant."""
    variants: list[Variant] = [
        (),
        ("accumulated", "dropout", "static"),
        ("accumulated", "frozen"),
        ("fp32", "accumulated", "checkpointing"),
    ]
    answers = {
        variant: _trained(variant, comm) for variant in [*variants, *(("compiled", *variant) for variant in variants)]
    }
    variant = ("compiled", "fp32", "accumulated")
    return answers | {("resumed",): {"states": _resumed(variant, comm)}}


def traced(comm: Comm) -> dict[Variant, dict[str, Any]]:
    """Return the results of one variant that is traced but not compiled, which needs no C++ compiler."""
    ddp.compile_function = partial(torch.compile, dynamic=False, backend="aot_eager")
    variant = ("accumulated", "frozen", "dropout", "static", "checkpointing")
    answers = {one: _trained(one, comm) for one in (variant, ("compiled", *variant))}
    return answers | {("graphs",): dict(torch._dynamo.utils.counters["stats"])}


def averages(comm: Comm) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the average after four steps by name, computed by a loop and by the engine."""
    variant = ("ema", "accumulated", "frozen")
    engine = engine_of(variant, comm)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 5):
        steps(engine, comm, variant, step, step)
        share = min(0.25, step / (9 + step)) if step > 1 else 0.0
        for name, weight in engine.model.named_parameters():
            if weight.requires_grad:
                expected[name] = share * expected.get(name, 0.0) + (1 - share) * weight.detach()
    return expected, copied(engine.state())["model_ema"]


def save(comm: Comm, path: str) -> None:
    """Save the state after three steps with EMA to a file."""
    engine = engine_of(("ema", "fp32"), comm)
    steps(engine, comm, ("ema",), 1, 3)
    if comm.topology.is_rank_zero:
        torch.save(copied(engine.state()), path)


def load(comm: Comm, path: str) -> dict[str, Any]:
    """Return the state after loading that file."""
    engine = engine_of(("ema", "fp32"), comm)
    engine.load(torch.load(path))
    return copied(engine.state())


def engine_of(variant: Variant, comm: Comm) -> DdpEngine:
    """Return an engine with a network from a fixed seed; fp64 unless the variant names a precision."""
    precision: Any = next((kind for kind in ("fp32", "bf16") if kind in variant), "fp64")
    torch.manual_seed(0)
    net = Net(variant).to(comm.device, DTYPES[precision], memory_format=torch.channels_last)
    config = OptimConfig(name="sgd" if "sgd" in variant else "adamw", lr=0.05)
    optimizer = build_optimizer(net.parameters(), config, decay=True)
    average = 0.25 if "ema" in variant else None
    options = DdpOptions(
        clip_norm=0.5, static_graph="static" in variant, compiled="compiled" in variant, ema_decay=average
    )
    example = torch.zeros(1, 1, 4, 4, dtype=DTYPES[precision])
    return DdpEngine(net, optimizer, comm, precision, example, options)


def steps(engine: DdpEngine, comm: Comm, variant: Variant, first: int, last: int) -> list[tuple[float, float]]:
    """Train some steps; return local loss and gradient norm of each."""
    metrics = []
    for step in range(first, last + 1):
        torch.manual_seed(1000 * step + comm.topology.rank)
        parts = batch_of(step, comm, engine).microbatches(3 if "accumulated" in variant else 1)
        outcome = engine.backward(parts, loss_fn(comm))
        metrics.append((float(outcome.loss), float(outcome.grad_norm)))
        engine.apply(0.05 / step)
    return metrics


def batch_of(step: int, comm: Comm, engine: DdpEngine) -> Batch:
    """Return the local part of the random batch of a step."""
    image = torch.randn(BATCH, 1, 4, 4, generator=torch.Generator().manual_seed(step))
    mine = comm.topology.rank_range(BATCH)
    label = torch.arange(BATCH) % OUT
    dtype = next(engine.model.parameters()).dtype
    return Batch(
        image=image[mine.start : mine.stop].to(dtype), label=label[mine.start : mine.stop], keys=("",) * len(mine)
    )


def loss_fn(comm: Comm) -> LossFn:
    """Return a loss whose average over the ranks is the mean over the global batch."""
    share = comm.topology.world_size / BATCH

    def loss(emb: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(emb.to(torch.float64), label, reduction="sum") * share

    return loss


def copied(state: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """Return contiguous copies, as in a checkpoint."""
    return {group: {n: t.detach().contiguous().clone() for n, t in tensors.items()} for group, tensors in state.items()}


def _trained(variant: Variant, comm: Comm) -> dict[str, Any]:
    engine = engine_of(variant, comm)
    start = copied({"": dict(engine.model.state_dict())})[""]
    metrics = steps(engine, comm, variant, 1, 2)
    engine.backward(batch_of(9, comm, engine).microbatches(2), loss_fn(comm))
    storages = {p.grad.untyped_storage().data_ptr() for p in engine.model.parameters() if p.grad is not None}
    engine.discard()
    metrics += steps(engine, comm, variant, 3, 3)
    torch.manual_seed(comm.topology.rank)
    gradients = {n: g.clone() for n, g in engine.gradients(batch_of(4, comm, engine), loss_fn(comm))}
    evaluated = copied({"": dict(engine.evaluation_model().state_dict())})[""]
    return {
        "start": start,
        "metrics": metrics,
        "state": copied(engine.state()),
        "gradients": gradients,
        "evaluated": evaluated,
        "storages": len(storages),
    }


def _resumed(variant: Variant, comm: Comm) -> list[dict[str, Any]]:
    whole = engine_of(variant, comm)
    steps(whole, comm, variant, 1, 2)
    saved = copied(whole.state())
    resumed = engine_of(variant, comm)
    warm_up = DdpEngine.warm_up_buckets
    DdpEngine.warm_up_buckets = lambda engine, example, passes: warm_up(engine, example, 1)  # type: ignore[method-assign]
    once = engine_of(variant, comm)
    DdpEngine.warm_up_buckets = warm_up  # type: ignore[method-assign]
    for engine in (resumed, once):
        engine.load(saved)
    for engine in (whole, resumed, once):
        steps(engine, comm, variant, 3, 3)
    return [copied(engine.state()) for engine in (whole, resumed, once)]


if __name__ == "__main__":
    with_comm(body)
