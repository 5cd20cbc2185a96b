"""The DDP engine's options on a small net of transformer-like blocks, step by step, as the ranks of a job."""

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
Way = tuple[str, ...]


class Net(nn.Module):
    """``(B, 1, 4, 4) -> (B, OUT)``: a convolution, two residual blocks, a neck; one block draws."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(2)
        )
        if "drawing" in way:
            self.blocks[1].append(nn.Dropout(0.3))
        self.neck = nn.Linear(WIDTH, OUT)
        if "unused" in way:
            self.lost = nn.Parameter(torch.ones(7))
        if "frozen" in way:
            self.stem.requires_grad_(False)
            self.blocks[0][1].weight.requires_grad_(False)
        if "recomputing" in way:
            assert checkpoint_activations(self) == len(self.blocks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return embeddings."""
        x = self.stem(image).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.neck(x.mean(dim=1))


def body(comm: Comm, case: str) -> Any:
    """Return what the case's function gives."""
    torch.set_num_threads(1)
    name, _, rest = case.partition(" ")
    cases: dict[str, Callable[..., Any]] = {
        "ways": in_all_ways,
        "resume": resume,
        "averages": averages,
        "keep": keep,
        "load": load,
        "compiled": compiled,
        "traced": traced,
    }
    return cases[name](comm, *rest.split())


def in_all_ways(comm: Comm) -> dict[Way, dict[str, Any]]:
    """Return, by way, gradient norms, losses and state of three steps, and the gradients of one more batch."""
    ways: list[Way] = [
        (),
        ("thirds",),
        ("static",),
        ("static", "thirds"),
        ("static", "thirds", "frozen", "unused"),
        ("frozen", "thirds"),
        ("drawing", "thirds"),
        ("recomputing", "thirds", "drawing"),
        ("static", "recomputing", "thirds", "drawing"),
        ("recomputing",),
        ("bf16", "thirds"),
        ("bf16", "thirds", "static"),
        ("bf16", "thirds", "recomputing"),
        ("average", "thirds"),
        ("average", "frozen", "sgd"),
    ]
    return {way: _trained(way, comm) for way in ways}


def resume(comm: Comm) -> dict[Way, list[dict[str, Any]]]:
    """Return, by way, the states after three steps: uninterrupted, resumed, and resumed with buckets settled once."""
    ways: list[Way] = [
        ("fp32", "static", "thirds", "frozen", "unused"),
        ("fp32", "average", "frozen"),
        ("fp32", "static", "average", "recomputing"),
    ]
    return {way: _resumed(way, comm) for way in ways}


def compiled(comm: Comm) -> dict[Way, dict[str, Any]]:
    """Return what steps come to with and without compilation, and after a resume, by way."""
    ways: list[Way] = [(), ("thirds", "drawing", "static"), ("thirds", "frozen"), ("fp32", "thirds", "recomputing")]
    answers = {way: _trained(way, comm) for way in [*ways, *(("compiled", *way) for way in ways)]}
    way = ("compiled", "fp32", "thirds")
    return answers | {("resumed",): {"states": _resumed(way, comm)}}


def traced(comm: Comm) -> dict[Way, dict[str, Any]]:
    """Return the same of one way without the kernels: what needs no C++ compiler, and not its time."""
    ddp.compile_function = partial(torch.compile, dynamic=False, backend="aot_eager")
    way = ("thirds", "frozen", "drawing", "static", "recomputing")
    answers = {one: _trained(one, comm) for one in (way, ("compiled", *way))}
    return answers | {("graphs",): dict(torch._dynamo.utils.counters["stats"])}


def averages(comm: Comm) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the average after four steps by name, by a plain loop over the weights after each, and the engine's."""
    way = ("average", "thirds", "frozen")
    engine = engine_of(way, comm)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 5):
        steps(engine, comm, way, step, step)
        share = min(0.25, step / (9 + step)) if step > 1 else 0.0
        for name, weight in engine.model.named_parameters():
            if weight.requires_grad:
                expected[name] = share * expected.get(name, 0.0) + (1 - share) * weight.detach()
    return expected, copied(engine.state())["model_ema"]


def keep(comm: Comm, path: str) -> None:
    """Leave the state after three steps with an average in a file."""
    engine = engine_of(("average", "fp32"), comm)
    steps(engine, comm, ("average",), 1, 3)
    if comm.topology.is_rank_zero:
        torch.save(copied(engine.state()), path)


def load(comm: Comm, path: str) -> dict[str, Any]:
    """Return the state after loading that file."""
    engine = engine_of(("average", "fp32"), comm)
    engine.load(torch.load(path))
    return copied(engine.state())


def engine_of(way: Way, comm: Comm) -> DdpEngine:
    """Return an engine with a net of one seed; fp64 if the way does not say otherwise."""
    precision: Any = next((kind for kind in ("fp32", "bf16") if kind in way), "fp64")
    torch.manual_seed(0)
    net = Net(way).to(comm.device, DTYPES[precision], memory_format=torch.channels_last)
    config = OptimConfig(name="sgd" if "sgd" in way else "adamw", lr=0.05)
    optimizer = build_optimizer(net.parameters(), config, decay=True)
    average = 0.25 if "average" in way else None
    options = DdpOptions(clip_norm=0.5, static_graph="static" in way, compiled="compiled" in way, ema_decay=average)
    example = torch.zeros(1, 1, 4, 4, dtype=DTYPES[precision])
    return DdpEngine(net, optimizer, comm, precision, example, options)


def steps(engine: DdpEngine, comm: Comm, way: Way, first: int, last: int) -> list[tuple[float, float]]:
    """Do some steps; return this rank's share of each one's loss, and the gradient's norm."""
    told = []
    for step in range(first, last + 1):
        torch.manual_seed(1000 * step + comm.topology.rank)
        parts = batch_of(step, comm, engine).microbatches(3 if "thirds" in way else 1)
        outcome = engine.backward(parts, loss_fn(comm))
        told.append((float(outcome.loss), float(outcome.grad_norm)))
        engine.apply(0.05 / step)
    return told


def batch_of(step: int, comm: Comm, engine: DdpEngine) -> Batch:
    """Return this rank's part of a step's batch, drawn from the step alone."""
    image = torch.randn(BATCH, 1, 4, 4, generator=torch.Generator().manual_seed(step))
    mine = comm.topology.rank_range(BATCH)
    label = torch.arange(BATCH) % OUT
    dtype = next(engine.model.parameters()).dtype
    return Batch(
        image=image[mine.start : mine.stop].to(dtype), label=label[mine.start : mine.stop], keys=("",) * len(mine)
    )


def loss_fn(comm: Comm) -> LossFn:
    """Return a rank's share of a mean over the whole batch, whose average over the ranks is that mean."""
    share = comm.topology.world_size / BATCH

    def loss(emb: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(emb.to(torch.float64), label, reduction="sum") * share

    return loss


def copied(state: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """Return contiguous copies, as a checkpoint holds them."""
    return {group: {n: t.detach().contiguous().clone() for n, t in tensors.items()} for group, tensors in state.items()}


def _trained(way: Way, comm: Comm) -> dict[str, Any]:
    engine = engine_of(way, comm)
    start = copied({"": dict(engine.model.state_dict())})[""]
    told = steps(engine, comm, way, 1, 2)
    engine.backward(batch_of(9, comm, engine).microbatches(2), loss_fn(comm))
    homes = {p.grad.untyped_storage().data_ptr() for p in engine.model.parameters() if p.grad is not None}
    engine.discard()
    told += steps(engine, comm, way, 3, 3)
    torch.manual_seed(comm.topology.rank)
    gradients = {n: g.clone() for n, g in engine.gradients(batch_of(4, comm, engine), loss_fn(comm))}
    judged = copied({"": dict(engine.evaluation_model().state_dict())})[""]
    return {
        "start": start,
        "told": told,
        "state": copied(engine.state()),
        "gradients": gradients,
        "judged": judged,
        "homes": len(homes),
    }


def _resumed(way: Way, comm: Comm) -> list[dict[str, Any]]:
    whole = engine_of(way, comm)
    steps(whole, comm, way, 1, 2)
    saved = copied(whole.state())
    resumed = engine_of(way, comm)
    warm_up = DdpEngine.warm_up_buckets
    DdpEngine.warm_up_buckets = lambda engine, example, passes: warm_up(engine, example, 1)  # type: ignore[method-assign]
    once = engine_of(way, comm)
    DdpEngine.warm_up_buckets = warm_up  # type: ignore[method-assign]
    for engine in (resumed, once):
        engine.load(saved)
    for engine in (whole, resumed, once):
        steps(engine, comm, way, 3, 3)
    return [copied(engine.state()) for engine in (whole, resumed, once)]


if __name__ == "__main__":
    with_comm(body)
