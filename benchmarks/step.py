"""Measure the overhead of a training step over a plain PyTorch loop: same network, loss and in-memory batches.

Both loops run in the same processes, step by step, in a new random order for each pair. Ours is the trainer's own step:
batch from a loader, stop agreement, forward, backward, clipping, optimiser, metrics row, TensorBoard and progress. The
plain loop has forward, backward, clipping and optimiser.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from bare_loop import bare_step, rank_environ

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, LossConfig, OptimConfig, TrainConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.data.order import ExactOrder
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.distributed.topology import topology_from_environ
from hsadml_dist.engine.learner import build_learner
from hsadml_dist.health.watchdog import HealthMonitor
from hsadml_dist.model_factory import build_network
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rendezvous import join_run
from hsadml_dist.run.trackers import open_recorder
from hsadml_dist.trainer import Session, Trainer

CLASSES = 3
SEED = 0


class MemoryLoader:
    """Return the same batch at every step."""

    threads_at_fork = 1

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def next(self, interrupted: Callable[[], bool]) -> Batch:
        """Return the batch."""
        return self._batch


def main() -> None:
    """Measure with 1 and 2 ranks, print medians, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=48, help="samples of a step, over all ranks")
    parser.add_argument("--rank-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_in:
        measure(options.rank_in, options.pairs, options.batch)
        os._exit(0)
    cases = [case for world in (1, 2) for case in side_by_side(world, options.pairs, options.batch)]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor_count": os.cpu_count(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "cases": cases}, indent=2) + "\n")


def side_by_side(world: int, pairs: int, batch: int) -> list[dict[str, object]]:
    """Run the ranks, print the medians, and return the cases of ``--json``."""
    with tempfile.TemporaryDirectory() as folder:
        token = uuid.uuid4().hex
        command = [sys.executable, __file__, "--rank-in", folder, "--pairs", str(pairs), "--batch", str(batch)]
        environs = [os.environ | rank_environ(rank, world, token) for rank in range(world)]
        ranks = [subprocess.Popen(command, env=environ) for environ in environs]
        codes = [rank.wait(timeout=1800) for rank in ranks]
        if any(codes):
            raise SystemExit(f"ranks ended with exit codes {codes}")
        seconds: dict[str, list[float]] = json.loads((Path(folder) / "seconds.json").read_text())
    ratios = [ours / bare for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    sys.stdout.write(
        f"{world} rank(s): ours {1e3 * statistics.median(seconds['ours']):.1f} ms, "
        f"bare loop {1e3 * statistics.median(seconds['bare']):.1f} ms a step; "
        f"ratio of pairs: median {statistics.median(ratios):.3f}, "
        f"quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f} ({pairs} pairs)\n"
    )
    names = {"ours": "ours", "bare": "bare-pytorch"}
    return [
        {"case": f"step, {world} ranks, batch {batch}", "implementation": names[key], "seconds": seconds[key]}
        for key in names
    ]


def measure(folder: Path, pairs: int, batch: int) -> None:
    """As one rank: time pairs of steps."""
    recipe = Recipe(
        data=DataConfig(shards="-", image_size=112),
        loss=LossConfig(name="softmax"),
        train=TrainConfig(steps=10**6, global_batch=batch, seed=SEED),
        optim=OptimConfig(schedule="constant"),
    )
    topology = topology_from_environ()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // topology.world_size))
    context = join_run(RunFolder(folder), topology, {}, 60, lambda: False)
    data = _batch(batch // topology.world_size)
    steps = {"ours": _ours(recipe, folder, context, data), "bare": _bare(recipe, context.comm, data)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(SEED)
    for pair in range(-5, pairs):
        for name in order.sample(sorted(steps), 2):
            began = time.perf_counter()
            steps[name]()
            if pair >= 0:
                seconds[name].append(time.perf_counter() - began)
    if topology.is_rank_zero:
        (folder / "seconds.json").write_text(json.dumps(seconds))
    context.comm.close()


def _ours(recipe: Recipe, folder: Path, context: object, data: Batch) -> Callable[[], object]:
    train_data = SimpleNamespace(
        loader=MemoryLoader(data),
        order=ExactOrder(count=1000, global_batch=recipe.train.global_batch, seed=SEED),
        total_steps=recipe.train.steps,
    )
    recorder = open_recorder(context, tensorboard=True)
    recorder.begin(0, recipe.train.steps)
    monitor = HealthMonitor(context, recipe.run, None)
    session = Session(run=RunFolder(folder), context=context, signal=StopSignal(), monitor=monitor, recorder=recorder)
    learner = build_learner(recipe, build_network(recipe), CLASSES, context.comm, recipe.train.steps)
    trainer = Trainer(recipe, train_data, learner, session)
    numbers = iter(range(1, 10**6))
    return lambda: trainer.train_step(next(numbers))


def _bare(recipe: Recipe, comm: Comm, data: Batch) -> Callable[[], object]:
    net = build_network(recipe).to(memory_format=torch.channels_last)
    torch.manual_seed(SEED)
    batch = replace(data, image=data.image.to(memory_format=torch.channels_last))
    return bare_step(net, comm, recipe, batch, CLASSES)


def _batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(SEED)
    image = torch.randn(size, 1, 112, 112, generator=generator)
    label = torch.arange(size) % CLASSES
    return Batch(image=image, label=label, keys=tuple(f"{i:016x}" for i in range(size)))


if __name__ == "__main__":
    main()
