"""Faults in files: checkpoints, rows, attempts and shards that are not as they were written."""

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
"""A step after the first checkpoint on the way, so that there is one to fall back to."""
TORN_ROW = '{"step": 7, "atte'


def damaged_checkpoints(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """The newest checkpoint damaged before a start, which must fall back and say so."""
    trip = new_sequence(grounds, draw, 2, 0)
    damages: dict[str, Callable[[Path, random.Random], str]] = {
        "truncated checkpoint file": truncate,
        "bit-flipped checkpoint file": flip,
        "missing COMMIT": drop_commit,
        "bit-flipped manifest": flip_manifest,
        "missing checkpoint file": drop_file,
    }
    trip.stop(FIRST_STOP)
    for kind, damage in damages.items():
        with trip.fault(kind) as entry:
            damaged_newest(trip, entry, damage)
    return trip.finish()


def damaged_rows(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """Rows and attempts as a power loss leaves them."""
    trip = new_sequence(grounds, draw, 1, 0)
    with trip.fault("torn last rows") as entry:
        entry.step = trip.stop()
        last = RunFolder(trip.job.run).attempts()[-1]
        for path in (last.metrics, last.events, last.ledger):
            with path.open("a") as file:
                file.write(TORN_ROW)
        trip.stop()
        trip.expect_loss(entry, 0)
    with trip.fault("attempt without a record") as entry:
        entry.step = trip.reached
        folder = RunFolder(trip.job.run)
        path = folder.attempt(len(folder.attempts()) + 1).path
        path.mkdir()
        os.utime(path, (time.time() - 60, time.time() - 60))
        trip.stop()
        trip.expect_loss(entry, 0)
    return trip.finish()


def damaged_shard(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """A flipped byte in a sample that will be read; with one rank and with two, with and without a worker."""
    for world, workers in ((1, 0), (2, 1)):
        trip = new_sequence(grounds, draw, world, workers)
        with trip.fault("flipped byte in a shard", good="clear_error") as entry:
            read_damage(trip, entry)
        yield from trip.finish()


def damaged_newest(trip: FaultSequence, entry: PendingFault, damage: Callable[[Path, random.Random], str]) -> None:
    """Damage the last stop's checkpoint and start: it must go on from the one before and name the damaged one."""
    entry.step = trip.reached
    folder = RunFolder(trip.job.run)
    last, before = lineage(list_checkpoints(folder), read_parents(folder))[:2]
    entry.detail.append(damage(folder.checkpoints / str(last), trip.draw))
    with trip.started() as start:
        start.wait_for_event("resumed")
        (resumed,), fell_back = start.events("resumed"), start.events("fell_back")
        start.wait_for_step(before.step + trip.draw.randint(1, 3))
        start.process.terminate()
        trip.note_end(entry, start)
    trip.expect_code(entry, ExitCode.STOPPED)
    if resumed["checkpoint"] != str(before):
        entry.problems.append(f"went on from {resumed['checkpoint']}, not from {before}")
    if [row["checkpoint"] for row in fell_back] != [str(last)]:
        entry.problems.append(f"no word on {last}, which was passed over")
    entry.detail += [row["reason"] for row in fell_back]


def truncate(checkpoint: Path, draw: random.Random) -> str:
    """Cut a file of tensors short."""
    path = draw.choice(sorted(checkpoint.glob("*.safetensors")))
    os.truncate(path, draw.randrange(path.stat().st_size))
    return f"{path.name} cut short"


def flip(checkpoint: Path, draw: random.Random) -> str:
    """Turn over a bit of a file of tensors."""
    path = draw.choice(sorted(checkpoint.glob("*.safetensors")))
    place = draw.randrange(path.stat().st_size)
    flip_bit(path, place)
    return f"{path.name}, byte {place}"


def flip_manifest(checkpoint: Path, draw: random.Random) -> str:
    """Turn over a bit of the manifest."""
    path = checkpoint / "manifest.json"
    flip_bit(path, draw.randrange(path.stat().st_size))
    return path.name


def drop_commit(checkpoint: Path, draw: random.Random) -> str:
    """Remove the last file that a save writes."""
    (checkpoint / COMMIT).unlink()
    return COMMIT


def drop_file(checkpoint: Path, draw: random.Random) -> str:
    """Remove a file of tensors."""
    path = draw.choice(sorted(checkpoint.glob("*.safetensors")))
    path.unlink()
    return path.name


def flip_bit(path: Path, place: int) -> None:
    """Turn over one bit of the byte at ``place``."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def read_damage(trip: FaultSequence, entry: PendingFault) -> None:
    """Damage a sample that a later step reads first, see the run end at that step, and put the byte back."""
    calm = trip.grounds.calm(trip.job.world).ledger
    step = trip.draw.randint(3, 4)  # within the first epoch, so that no earlier step reads it
    key = trip.draw.choice(calm[step])
    index = load_index(trip.job.shards)
    (row,) = [row for row in index.samples if row.key == key]
    shard = trip.job.shards / index.shards[row.shard].name
    offset, size = row.members[IMAGE]
    flip_bit(shard, offset + size // 2)
    try:
        with trip.started() as start:
            trip.note_end(entry, start)
            entry.step = start.step()
    finally:
        flip_bit(shard, offset + size // 2)
    trip.expect_code(entry, ExitCode.USER_ERROR)
    trip.expect_clear_error(entry, start, shard.name, key)
    trip.expect_loss(entry)
    if entry.step != step - 1:
        entry.problems.append(f"ended after step {entry.step}, though step {step} of {STEPS} reads the sample")


FAULTS = (damaged_checkpoints, damaged_rows, damaged_shard)
