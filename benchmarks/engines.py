"""Measure step time and memory of each engine next to a plain PyTorch loop: same network, batches in memory.

Each engine runs in new processes, because a process returns little memory to the system. Memory is the resident set:
its peak over the whole process, and its size between two steps after free memory was returned. The share of the imports
is listed separately.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from bare_loop import bare_step, rank_environ

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, ModelConfig, OptimConfig, TrainConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.distributed.topology import topology_from_environ
from hsadml_dist.engine.learner import build_learner
from hsadml_dist.model_factory import build_network
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rendezvous import join_run

PLAIN = "bare-pytorch"
ENGINES = {
    "ours-ddp": EngineConfig(),
    "ours-ddp-recompute": EngineConfig(activation_checkpointing=True),
    **{f"ours-zero-{stage}": EngineConfig(name="deepspeed", zero_stage=stage) for stage in range(4)},
    "ours-zero-2-offload": EngineConfig(name="deepspeed", zero_stage=2, offload_optimizer=True),
}
CLASSES, SEED, WARM_UP = 3, 0, 1


def main() -> None:
    """Measure each engine, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", default="monai_vit_base_16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="samples of a step, over all ranks")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--engines", default=",".join([PLAIN, *ENGINES]))
    parser.add_argument("--rank-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_in:
        be_rank(options)
        os._exit(0)
    cases = [measured(options, engine) for engine in options.engines.split(",")]
    sys.stdout.write(table(options, cases) + "\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor_count": os.cpu_count(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "cases": cases}, indent=2) + "\n")


def measured(options: argparse.Namespace, engine: str) -> dict[str, object]:
    """Train a few steps under an engine; return seconds and memory of the rank with the largest values."""
    with tempfile.TemporaryDirectory() as folder:
        token, given = uuid.uuid4().hex, vars(options) | {"engines": engine, "rank_in": folder, "json": None}
        words = [f"--{key.replace('_', '-')}={value}" for key, value in given.items() if value is not None]
        command = [sys.executable, __file__, *words]
        environs = [os.environ | rank_environ(rank, options.ranks, token) for rank in range(options.ranks)]
        ranks = [subprocess.Popen(command, env=environ) for environ in environs]
        codes = [rank.wait(timeout=1800) for rank in ranks]
        if any(codes):
            raise SystemExit(f"{engine}: ranks ended with exit codes {codes}")
        answers = [json.loads((Path(folder) / f"rank-{rank}.json").read_text()) for rank in range(options.ranks)]
    most = max(answers, key=lambda answer: answer["peak_mib"])
    case = f"{options.model} {options.image_size}, {options.ranks} ranks, batch {options.batch}, fp32"
    extra = most["peak_mib"] - most["imports_mib"]
    return {"case": case, "implementation": engine, "extra_mib": extra, **most}


def table(options: argparse.Namespace, cases: list[dict[str, object]]) -> str:
    """Return the cases as a table, with ratios to the plain loop where it ran."""
    plain = next((case for case in cases if case["implementation"] == PLAIN), cases[0])
    lines = [f"{cases[0]['case']}; resident memory of a rank, MiB; {options.steps} steps, median"]
    titles = f"{'s a step':>9}{'ratio':>7}{'peak':>8}{'imports':>9}{'the rest':>10}{'ratio':>7}{'held':>8}{'ratio':>7}"
    lines += [f"{'':22}{titles}"]
    for case in cases:
        seconds, before = (statistics.median(one["seconds"]) for one in (case, plain))
        lines.append(
            f"{case['implementation']:22}{seconds:9.2f}{seconds / before:7.2f}{case['peak_mib']:8.0f}"
            f"{case['imports_mib']:9.0f}{case['extra_mib']:10.0f}{case['extra_mib'] / plain['extra_mib']:7.2f}"
            f"{case['held_mib']:8.0f}{case['held_mib'] / plain['held_mib']:7.2f}"
        )
    return "\n".join(lines)


def be_rank(options: argparse.Namespace) -> None:
    """Run one rank: train under one engine."""
    engine, topology = options.engines, topology_from_environ()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // topology.world_size))
    importlib.import_module("monai.networks.nets")
    if "zero" in engine:
        os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
        importlib.import_module("deepspeed")
    imports = _memory("VmRSS")
    comm = join_run(RunFolder(options.rank_in), topology, {}, 60, lambda: False).comm
    recipe = _recipe(options, ENGINES.get(engine, EngineConfig()))
    step = _plain(recipe, comm) if engine == PLAIN else _ours(recipe, comm)
    seconds = [_timed(step, number) for number in range(1, WARM_UP + options.steps + 1)][WARM_UP:]
    answer = {"seconds": seconds, "imports_mib": imports, "peak_mib": _memory("VmHWM")}
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    answer["held_mib"] = _memory("VmRSS") - imports
    (options.rank_in / f"rank-{topology.rank}.json").write_text(json.dumps(answer))
    comm.close()


def _recipe(options: argparse.Namespace, engine: EngineConfig) -> Recipe:
    return Recipe(
        data=DataConfig(shards="-", image_size=options.image_size),
        model=ModelConfig(name=options.model),
        train=TrainConfig(steps=1000, global_batch=options.batch, seed=SEED),
        optim=OptimConfig(schedule="constant", lr=1e-4),
        engine=engine,
    )


def _ours(recipe: Recipe, comm: Comm) -> Callable[[int], object]:
    learner, batch = build_learner(recipe, build_network(recipe), CLASSES, comm, 1000), _batch(recipe, comm)
    return lambda number: learner.step(number, batch)


def _plain(recipe: Recipe, comm: Comm) -> Callable[[int], object]:
    batch, net = _batch(recipe, comm), build_network(recipe).to(comm.device)
    here = replace(batch, image=batch.image.to(comm.device), label=batch.label.to(comm.device))
    step = bare_step(net, comm, recipe, here, CLASSES)
    return lambda number: step()


def _batch(recipe: Recipe, comm: Comm) -> Batch:
    count, size = recipe.train.global_batch // comm.topology.world_size, recipe.data.image_size
    image = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(comm.topology.rank))
    return Batch(image=image, label=torch.arange(count) % CLASSES, keys=("",) * count)


def _timed(step: Callable[[int], object], number: int) -> float:
    began = time.perf_counter()
    step(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _memory(field: str) -> float:
    """Return an entry of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
