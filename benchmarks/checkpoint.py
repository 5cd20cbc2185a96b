"""Measure how long saving a checkpoint stalls training: background and foreground saves, torch.save and DCP.

The state is AdamW's: parameters and two moments in fp32, one fifth of it class centres sharded over the ranks. The
implementations run interleaved, in a new random order for each round. A stall is the time of the slowest rank from the
call until the next step can start; the rest of a background save is waited for and timed separately. Every
implementation forces its files to disk. Loading is timed until the state is verified and in memory, from a warm page
cache.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from hsadml_dist.checkpoint.background import CheckpointSaver
from hsadml_dist.checkpoint.layout import CheckpointName, TrainingProgress, list_checkpoints
from hsadml_dist.checkpoint.load import choose_checkpoint, load_checkpoint
from hsadml_dist.checkpoint.tensor_files import TensorGroup, TrainingState
from hsadml_dist.config.recipe import CheckpointConfig
from hsadml_dist.distributed.comm import TorchComm
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.run.folder import RunFolder

COLUMNS = 512
ROWS_A_TENSOR = 2048
CENTRES_SHARE = 0.2
SEED = 0
SECONDS = 600
BACKGROUND, FOREGROUND, PICKLE, DCP = "ours-background", "ours-foreground", "torch.save", "dcp-async_save"
NEEDED = 0.10
"""Largest allowed stall of a background save relative to the same save in the foreground."""

Seconds = dict[str, dict[str, list[float]]]


def main() -> None:
    """Measure, print medians, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--millions", type=float, nargs="+", default=[25, 100], help="parameters")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: the temporary folder")
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        _be_rank(**json.loads(options.as_rank))
        os._exit(0)
    cases = []
    for millions in options.millions:
        for world in options.ranks:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                cases += measured(Path(folder), millions, world, options.rounds)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor_count": os.cpu_count(), "torch": torch.__version__, "machine": platform.machine()}
        options.json.write_text(json.dumps({"machine": machine, "cases": cases}, indent=2) + "\n")


def measured(folder: Path, millions: float, world: int, rounds: int) -> list[dict[str, Any]]:
    """Run the ranks, print the medians, and return the cases of ``--json``."""
    order = {"folder": str(folder), "world": world, "parameters": round(millions * 1e6), "rounds": rounds}
    # With several threads the result would depend on other load of the machine.
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--as-rank"]
    ranks = [subprocess.Popen([*command, json.dumps(order | {"rank": rank})], env=environ) for rank in range(world)]
    codes = [rank.wait(timeout=3600) for rank in ranks]
    if any(codes):
        raise SystemExit(f"ranks ended with exit codes {codes}")
    seconds: Seconds = json.loads((folder / "seconds.json").read_text())
    name = f"{millions:g}M parameters, {world} ranks"
    _print(name, seconds)
    return [
        {"case": f"{what}, {name}", "implementation": way, "seconds": values}
        for what, ways in seconds.items()
        for way, values in ways.items()
    ]


def _print(name: str, seconds: Seconds) -> None:
    for what, ways in seconds.items():
        summary = ", ".join(f"{way} {statistics.median(values):.3f} s" for way, values in ways.items())
        sys.stdout.write(f"{name}: {what}: {summary}\n")
    stalls = seconds["stall"]
    ratios = [ours / fore for ours, fore in zip(stalls[BACKGROUND], stalls[FOREGROUND], strict=True)]
    ratio = statistics.median(ratios)
    sys.stdout.write(
        f"{name}: a background save stalls {100 * ratio:.1f} % of the same save in the foreground "
        f"({100 * min(ratios):.1f} to {100 * max(ratios):.1f} %; needed: at most {100 * NEEDED:.0f} %)\n"
    )
    sys.stdout.flush()


def _be_rank(folder: str, world: int, rank: int, parameters: int, rounds: int) -> None:
    """Run one rank: save and load alternately."""
    place = Topology(rank=rank, world_size=world, local_rank=rank, local_world_size=world)
    store = dist.FileStore(f"{folder}/store", world)
    comm = TorchComm(place, store, torch.device("cpu"), SECONDS)
    ways = Ways(Path(folder), comm, parameters)
    seconds: Seconds = {"stall": {}, "until it is on the disk": {}, "verify and load": {}}
    order = random.Random(SEED)
    for round_ in range(-1, rounds):  # the first one, which takes memory, is not counted
        for way in order.sample((BACKGROUND, FOREGROUND, PICKLE, DCP), 4):
            stall, whole = ways.save(way, 10 * (round_ + 2))
            load = ways.load(way) if way != FOREGROUND else None
            if round_ >= 0:
                seconds["stall"].setdefault(way, []).append(stall)
                seconds["until it is on the disk"].setdefault(way, []).append(whole)
                if load is not None:
                    seconds["verify and load"].setdefault(way.removesuffix("-background"), []).append(load)
    if place.is_rank_zero:
        (Path(folder) / "seconds.json").write_text(json.dumps(seconds))
    comm.close()


class Ways:
    """Save and load implementations of one rank."""

    def __init__(self, folder: Path, comm: TorchComm, parameters: int) -> None:
        self._comm, self._folder = comm, folder
        self._rows = comm.topology.rank_range(max(comm.topology.world_size, int(CENTRES_SHARE * parameters) // COLUMNS))
        self._groups = _groups(parameters, self._rows)
        self._run = RunFolder(folder / "run")
        attempt = self._run.attempt(1)
        if comm.topology.is_rank_zero:
            attempt.path.mkdir(parents=True)
        comm.all_gather_json(None)
        self._saver = CheckpointSaver(self._run, attempt, comm, CheckpointConfig(keep=1), lambda name: None)
        self._gloo = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=SECONDS))
        self._taken = 0

    def save(self, way: str, step: int) -> tuple[float, float]:
        """Save; return the slowest rank's seconds (until the next step can start, until everything is on disk)."""
        self._taken += 1
        for part in self._groups.values():
            for tensor in part.values():
                tensor.add_(1)  # what a step does
        if way in (PICKLE, DCP):
            shutil.rmtree(self._folder / way, ignore_errors=True)
        self._comm.all_gather_json(None)
        began = time.perf_counter()
        wait = {BACKGROUND: self._ours, FOREGROUND: self._ours_at_once, PICKLE: self._pickle, DCP: self._dcp}[way]()
        stall = time.perf_counter() - began
        wait()
        whole = time.perf_counter() - began
        return max(self._comm.all_gather_json(stall)), max(self._comm.all_gather_json(whole))

    def load(self, way: str) -> float:
        """Load the newest save; return the slowest rank's seconds."""
        self._comm.all_gather_json(None)
        began = time.perf_counter()
        {BACKGROUND: self._load_ours, PICKLE: self._load_pickle, DCP: self._load_dcp}[way]()
        return max(self._comm.all_gather_json(time.perf_counter() - began))

    def _state(self) -> TrainingState:
        progress = TrainingProgress(
            step=self._taken,
            consumed=self._taken,
            seed=0,
            fingerprint="f",
            data_digest="d",
            world_size=self._comm.topology.world_size,
        )
        return TrainingState(groups=self._groups, progress=progress, rows=self._rows)

    def _ours(self) -> Callable[[], None]:
        self._saver.save_async(self._state())
        return self._saver.wait

    def _ours_at_once(self) -> Callable[[], None]:
        self._saver.save(self._state())
        return lambda: None

    def _pickle(self) -> Callable[[], None]:
        """Save with torch.save: rank 0 the replicated state, every rank its rows."""
        folder = self._folder / PICKLE
        folder.mkdir(exist_ok=True)
        rank = self._comm.topology.rank
        with (folder / f"{rank}.pt").open("wb") as file:
            torch.save(self._groups if rank == 0 else {"centres": self._groups["centres"]}, file)
            file.flush()
            os.fsync(file.fileno())
        self._comm.all_gather_json(None)
        return lambda: None

    def _dcp(self) -> Callable[[], None]:
        answer = dcp.async_save(self._named(), checkpoint_id=self._folder / DCP, process_group=self._gloo)
        future: Future[Any] = answer if isinstance(answer, Future) else answer.upload_completion
        return lambda: (future.result(), None)[1]

    def _named(self) -> dict[str, torch.Tensor]:
        """Map names to tensors; rows of this rank have a name of their own."""
        rank = self._comm.topology.rank
        return {
            f"{group}.{name}" + (f".{rank}" if group.startswith("centres") else ""): tensor
            for group, tensors in self._groups.items()
            for name, tensor in tensors.items()
        }

    def _load_ours(self) -> None:
        choice = choose_checkpoint(self._run, self._comm)
        assert choice.name == list_checkpoints(self._run)[-1] == CheckpointName(self._taken, 1)
        for group, tensors in load_checkpoint(self._run, choice.name, self._rows).groups.items():
            for name, tensor in tensors.items():
                self._groups[group][name].copy_(tensor)

    def _load_pickle(self) -> None:
        for path in {0, self._comm.topology.rank}:
            for group, tensors in torch.load(self._folder / PICKLE / f"{path}.pt").items():
                if group.startswith("centres") and path != self._comm.topology.rank:
                    continue
                for name, tensor in tensors.items():
                    self._groups[group][name].copy_(tensor)

    def _load_dcp(self) -> None:
        dcp.load(self._named(), checkpoint_id=self._folder / DCP, process_group=self._gloo)


def _groups(parameters: int, rows: range) -> dict[str, TensorGroup]:
    """Return parameters and moments of a network and this rank's rows of the centres."""
    torch.manual_seed(SEED)
    count = max(1, round((1 - CENTRES_SHARE) * parameters / COLUMNS / ROWS_A_TENSOR))
    height = max(1, round((1 - CENTRES_SHARE) * parameters / COLUMNS / count))
    names = [f"layer{number}.weight" for number in range(count)]
    weights = {name: torch.randn(height, COLUMNS) for name in names}
    moments = {f"{name}:{moment}": torch.randn(height, COLUMNS) for name in names for moment in ("m", "v")}
    centres = {"weight": torch.randn(len(rows), COLUMNS)}
    rows_moments = {f"weight:{moment}": torch.randn(len(rows), COLUMNS) for moment in ("m", "v")}
    return {"model": weights, "model_moments": moments, "centres": centres, "centres_moments": rows_moments}


if __name__ == "__main__":
    main()
