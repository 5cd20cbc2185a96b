"""Ranks that use collectives while their checkpoints are written; the case is ``WAY RUN``.

Ways: ``background``, ``foreground``: three saves; ``broken-R``: rank R cannot write the second save; ``killed``: rank 1
kills itself while it writes the second save; ``again``: the attempt after that.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import torch
from rank_script import with_comm

from hsadml_dist.atomic import write_text
from hsadml_dist.checkpoint import save
from hsadml_dist.checkpoint.background import CheckpointSaver
from hsadml_dist.checkpoint.layout import TrainingProgress
from hsadml_dist.checkpoint.tensor_files import TensorGroup, TrainingState
from hsadml_dist.config.recipe import CheckpointConfig
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import HsadmlError
from hsadml_dist.run.folder import RunFolder

CLASSES, EVERY, LAST = 7, 10, 30
NO_LIMIT = resource.RLIM_INFINITY


def body(comm: Comm, case: str) -> dict[str, Any]:
    """Run steps that change the state, and save every tenth."""
    way, _, path = case.partition(" ")
    run, number = RunFolder(Path(path)), 2 if way == "again" else 1
    attempt, saved = run.attempt(number), []
    if comm.topology.is_rank_zero:
        attempt.path.mkdir(parents=True)
        parent = "step-00000010.attempt-0001" if way == "again" else None
        write_text(attempt.parent, json.dumps({"checkpoint": parent}))
    comm.all_gather_json(None)
    config = CheckpointConfig(every=EVERY, background=way != "foreground")
    saver = CheckpointSaver(run, attempt, comm, config, lambda name: saved.append(name.step))
    answer = _train(comm, saver, way, range(11, 21) if way == "again" else range(1, LAST + 1))
    return answer | {"saved": saved}


def _train(comm: Comm, saver: CheckpointSaver, way: str, steps: range) -> dict[str, Any]:
    groups, total = _groups(comm), torch.zeros(())
    step = 0
    try:
        for step in steps:
            if max(comm.all_gather_json(int(saver.failed))):
                break
            total += comm.all_reduce_sum(torch.tensor(float(comm.topology.rank + step)))
            for tensors in groups.values():
                for tensor in tensors.values():
                    tensor.add_(step)
            if step == 2 * EVERY:
                _fail(comm.topology.rank, way, saver)
            if step % EVERY == 0:
                saver.save_async(_state(comm, groups, step))
        saver.wait()
    except HsadmlError as fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (NO_LIMIT, NO_LIMIT))
        return {"fault": str(fault), "stopped at": step}
    return {"sum": float(total)}


def _fail(rank: int, way: str, saver: CheckpointSaver) -> None:
    if way == f"broken-{rank}":
        saver.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, NO_LIMIT))
    if way == "killed" and rank == 1:
        saver.wait()
        save.write_tensors = _write_half_and_die


def _write_half_and_die(path: Path, tensors: TensorGroup) -> dict[str, int | str]:
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _groups(comm: Comm) -> dict[str, TensorGroup]:
    part = comm.topology.rank_range(CLASSES)
    weight = torch.arange(CLASSES * 400.0).reshape(CLASSES, 400)[part.start : part.stop].clone()
    return {
        "model": {"weight": torch.ones(40, 50), "step": torch.tensor(0.0)},
        "model_moments": {},
        "centres": {"weight": weight},
        "centres_moments": {"weight:exp_avg": 2 * weight},
    }


def _state(comm: Comm, groups: dict[str, TensorGroup], step: int) -> TrainingState:
    world = comm.topology.world_size
    progress = TrainingProgress(step=step, consumed=step, seed=0, fingerprint="f", data_digest="d", world_size=world)
    return TrainingState(groups=groups, progress=progress, rows=comm.topology.rank_range(CLASSES))


if __name__ == "__main__":
    with_comm(body)
