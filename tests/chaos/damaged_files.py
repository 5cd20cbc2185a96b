"""Faults in files: damaged checkpoints, rows, attempts and shards."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hsadml_dist.checkpoint.layout import COMMIT, lineage, list_checkpoints, read_parents
from hsadml_dist.data.index import load_index
from hsadml_dist.data.sample import IMAGE
from hsadml_dist.errors import ExitCode
from hsadml_dist.run.folder import RunFolder
from tests.chaos.baseline_runs import Workspace
from tests.chaos.evidence import Fault
from tests.chaos.fault_sequence import FaultSequence, PendingFault, new_sequence
from tests.chaos.training_process import STEPS

FIRST_STOP = 10
"""A step after the first periodic checkpoint, so that there is one to fall back to."""
TORN_ROW = '{"step": 7, "atte'


def damaged_checkpoints(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Damage the newest checkpoint before a start, which must fall back to the one before and report it."""
    sequence = new_sequence(workspace, rng, 2, 0)
    damages: dict[str, Callable[[Path, random.Random], str]] = {
        "truncated checkpoint file": truncate,
        "bit-flipped checkpoint file": flip,
        "missing COMMIT": drop_commit,
        "bit-flipped manifest": flip_manifest,
        "missing checkpoint file": drop_file,
    }
    sequence.stop(FIRST_STOP)
    for kind, damage in damages.items():
        with sequence.fault(kind) as entry:
            damaged_newest(sequence, entry, damage)
    return sequence.finish()


def damaged_rows(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Truncate rows and attempts as a power failure does."""
    sequence = new_sequence(workspace, rng, 1, 0)
    with sequence.fault("torn last rows") as entry:
        entry.step = sequence.stop()
        last = RunFolder(sequence.job.run).attempts()[-1]
        for path in (last.metrics, last.events, last.ledger):
            with path.open("a") as file:
                file.write(TORN_ROW)
        sequence.stop()
        sequence.expect_loss(entry, 0)
    with sequence.fault("attempt without a record") as entry:
        entry.step = sequence.reached
        folder = RunFolder(sequence.job.run)
        path = folder.attempt(len(folder.attempts()) + 1).path
        path.mkdir()
        os.utime(path, (time.time() - 60, time.time() - 60))
        sequence.stop()
        sequence.expect_loss(entry, 0)
    return sequence.finish()


def damaged_shard(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Flip a byte in a sample that will be read; with one and two ranks, with and without a worker."""
    for world, workers in ((1, 0), (2, 1)):
        sequence = new_sequence(workspace, rng, world, workers)
        with sequence.fault("flipped byte in a shard", good="clear_error") as entry:
            read_damaged_sample(sequence, entry)
        yield from sequence.finish()


def damaged_newest(sequence: FaultSequence, entry: PendingFault, damage: Callable[[Path, random.Random], str]) -> None:
    """Damage the newest checkpoint and start: it must resume from the one before and name the damaged one."""
    entry.step = sequence.reached
    folder = RunFolder(sequence.job.run)
    last, before = lineage(list_checkpoints(folder), read_parents(folder))[:2]
    entry.detail.append(damage(folder.checkpoints / str(last), sequence.rng))
    with sequence.started() as start:
        start.wait_for_event("resumed")
        (resumed,), fell_back = start.events("resumed"), start.events("fell_back")
        start.wait_for_step(before.step + sequence.rng.randint(1, 3))
        start.process.terminate()
        sequence.record_end(entry, start)
    sequence.expect_code(entry, ExitCode.STOPPED)
    if resumed["checkpoint"] != str(before):
        entry.problems.append(f"resumed from {resumed['checkpoint']}, not from {before}")
    if [row["checkpoint"] for row in fell_back] != [str(last)]:
        entry.problems.append(f"no event for {last}, which was rejected")
    entry.detail += [row["reason"] for row in fell_back]


def truncate(checkpoint: Path, rng: random.Random) -> str:
    """Truncate a tensor file."""
    path = rng.choice(sorted(checkpoint.glob("*.safetensors")))
    os.truncate(path, rng.randrange(path.stat().st_size))
    return f"{path.name} truncated"


def flip(checkpoint: Path, rng: random.Random) -> str:
    """Flip a bit of a tensor file."""
    path = rng.choice(sorted(checkpoint.glob("*.safetensors")))
    offset = rng.randrange(path.stat().st_size)
    flip_bit(path, offset)
    return f"{path.name}, byte {offset}"


def flip_manifest(checkpoint: Path, rng: random.Random) -> str:
    """Flip a bit of the manifest."""
    path = checkpoint / "manifest.json"
    flip_bit(path, rng.randrange(path.stat().st_size))
    return path.name


def drop_commit(checkpoint: Path, rng: random.Random) -> str:
    """Remove the COMMIT file."""
    (checkpoint / COMMIT).unlink()
    return COMMIT


def drop_file(checkpoint: Path, rng: random.Random) -> str:
    """Remove a tensor file."""
    path = rng.choice(sorted(checkpoint.glob("*.safetensors")))
    path.unlink()
    return path.name


def flip_bit(path: Path, offset: int) -> None:
    """Flip one bit of the byte at ``offset``."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def read_damaged_sample(sequence: FaultSequence, entry: PendingFault) -> None:
    """Damage a sample that a later step reads first, check that the run ends at that step, and repair the sample."""
    baseline = sequence.workspace.baseline(sequence.job.world).ledger
    step = sequence.rng.randint(3, 4)  # within the first epoch, so that no earlier step reads the sample
    key = sequence.rng.choice(baseline[step])
    index = load_index(sequence.job.shards)
    (row,) = [row for row in index.samples if row.key == key]
    shard = sequence.job.shards / index.shards[row.shard].name
    offset, size = row.members[IMAGE]
    flip_bit(shard, offset + size // 2)
    try:
        with sequence.started() as start:
            sequence.record_end(entry, start)
            entry.step = start.step()
    finally:
        flip_bit(shard, offset + size // 2)
    sequence.expect_code(entry, ExitCode.USER_ERROR)
    sequence.expect_clear_error(entry, start, shard.name, key)
    sequence.expect_loss(entry)
    if entry.step != step - 1:
        entry.problems.append(f"ended after step {entry.step}, though step {step} of {STEPS} reads the sample")


FAULTS = (damaged_checkpoints, damaged_rows, damaged_shard)
