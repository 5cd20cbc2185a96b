"""Checks of a run folder's file system: space, write speed, atomic rename and exclusive mkdir."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from hsadml_dist.checkpoint.layout import COMMIT, list_checkpoints
from hsadml_dist.launch.doctor.check_results import CheckResult, check_result, unknown_result
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_metrics

GROUP = "file system"
MEBIBYTE = 2**20
GIBIBYTE = 2**30
WRITTEN = 64 * MEBIBYTE
"""Bytes that the write test writes, and removes."""
SLOW_MB = 50.0
LITTLE_GIB, TOO_LITTLE_GIB = 10.0, 1.0
FEW_INODES, TOO_FEW_INODES = 100_000, 1_000
SKEW_SECONDS, NO_SKEW_SECONDS = 2.0, 0.1
RACERS, RACES, RENAMES = 4, 50, 200
IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, kw_only=True)
class DiskSpeed:
    """How fast a file is written.

    Attributes:
        write_seconds: Writing 64 MiB and forcing them to disk.
        hash_seconds: Their SHA-256, which a checkpoint takes as well.
    """

    write_seconds: float
    hash_seconds: float

    @property
    def write_rate(self) -> float:
        """Megabytes (10^6 bytes) a second, without the hash."""
        return WRITTEN / 1e6 / self.write_seconds

    def save_seconds(self, size: int) -> float:
        """Return how long a checkpoint of ``size`` bytes would take at this speed."""
        return size / WRITTEN * (self.write_seconds + self.hash_seconds)


def existing_parent(folder: Path) -> Path:
    """Return ``folder``, or the nearest folder above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


@contextlib.contextmanager
def temporary_folder(where: Path) -> Iterator[Path]:
    """Provide a new folder in ``where``, removed at the end.

    Raises:
        OSError: Nothing can be written there.
    """
    folder = Path(tempfile.mkdtemp(prefix=".hsadml-doctor-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_disk(where: Path, needed: int | None) -> Iterator[CheckResult | DiskSpeed]:
    """Yield what is found of the file system of ``where``, a folder that exists; then its speed.

    Args:
        where: The folder; a folder of its own is made in it, and removed.
        needed: Bytes of the checkpoints that a run keeps, where that is known.
    """
    yield _kind(where)
    try:
        with temporary_folder(where) as folder:
            # Before the write test, whose own bytes would count.
            yield check_free_space(_free_bytes(where), needed)
            yield check_free_inodes(os.statvfs(where).f_files, os.statvfs(where).f_favail)
            speed = measure_speed(folder / "speed")
            yield check_write_rate(speed.write_rate)
            yield check_atomic_rename(count_torn_reads(folder))
            yield check_exclusive_mkdir(count_mkdir_winners(folder, RACERS, RACES))
            yield check_file_clock(file_server_time(folder) - time.time())
            yield speed
    except OSError as fault:
        todo = "make room, or name another folder with --run"
        yield check_result(GROUP, "writing", f"{where}: {fault.strerror or fault}", fail=todo)


def check_free_space(free: int, needed: int | None) -> CheckResult:
    """Judge the free bytes; quotas are not seen by this."""
    found = f"{free / GIBIBYTE:.1f} GiB (a quota is not seen from here)"
    if needed is not None:
        found += f"; the run's checkpoints take {needed / GIBIBYTE:.2f} GiB"
    room = "make room, or lower checkpoint.keep"
    too_little = free < max(TOO_LITTLE_GIB * GIBIBYTE, needed or 0)
    little = free < LITTLE_GIB * GIBIBYTE
    return check_result(GROUP, "free space", found, fail=room if too_little else "", warn=room if little else "")


def check_free_inodes(total: int, free: int) -> CheckResult:
    """Judge the free inodes; file systems that make them as needed say 0 of 0."""
    if total == 0:
        return check_result(GROUP, "free inodes", "not counted by this file system")
    todo = "remove small files: a run folder of a long run holds some thousands"
    too_few, few = free < TOO_FEW_INODES, free < FEW_INODES
    return check_result(GROUP, "free inodes", f"{free:,}", fail=todo if too_few else "", warn=todo if few else "")


def check_write_rate(rate: float, what: str = "64 MiB, one file", group: str = GROUP) -> CheckResult:
    """Judge a rate in megabytes a second."""
    todo = "checkpoints will be slow: keep run folders on the cluster's fast (scratch) file system"
    return check_result(group, "write + fsync", f"{rate:.0f} MB/s ({what})", warn=todo if rate < SLOW_MB else "")


def check_atomic_rename(torn: int) -> CheckResult:
    """Judge how many of the readings during renames found no whole file."""
    todo = "checkpoints and records could be torn: use another file system"
    found = f"atomic in {RENAMES} of {RENAMES} replacements" if not torn else f"{torn} readings found no whole file"
    return check_result(GROUP, "rename", found, fail=todo if torn else "")


def check_exclusive_mkdir(wins: Sequence[int], who: str = f"{RACERS} processes", group: str = GROUP) -> CheckResult:
    """Judge how many succeeded in each race to make a folder."""
    wrong = sum(count != 1 for count in wins)
    todo = "two starts could hold one run: use another file system"
    found = f"one winner in {len(wins) - wrong} of {len(wins)} races of {who}"
    return check_result(group, "exclusive mkdir", found, fail=todo if wrong else "")


def check_file_clock(seconds: float) -> CheckResult:
    """Judge by how many seconds the file server's clock is ahead of this machine's."""
    todo = "have the clocks set (chrony, ntp): times in logs and records will not fit together"
    apart = f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    found = apart if abs(seconds) >= NO_SKEW_SECONDS else f"within {NO_SKEW_SECONDS} s of this machine's"
    return check_result(GROUP, "file clock", found, warn=todo if abs(seconds) > SKEW_SECONDS else "")


def measure_speed(path: Path) -> DiskSpeed:
    """Write 64 MiB that do not compress, force them to disk, remove them; then hash as much."""
    block = os.urandom(MEBIBYTE)
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(WRITTEN // MEBIBYTE):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    written = time.perf_counter()
    path.unlink()
    hashing = time.perf_counter()
    digest = hashlib.sha256()
    for _ in range(WRITTEN // MEBIBYTE):
        digest.update(block)
    return DiskSpeed(write_seconds=written - began, hash_seconds=time.perf_counter() - hashing)


def count_torn_reads(folder: Path, replace: Callable[[Path, Path], None] = os.replace) -> int:
    """Replace a file over and over while another process reads it; return how many readings found no whole file.

    Args:
        folder: Where to do it.
        replace: How a file takes another's place.
    """
    target = folder / "target"
    target.write_text("0" * 4096)
    mine, theirs = multiprocessing.Pipe()
    reader = _fork(_read_again_and_again, target, theirs)
    for number in range(1, RENAMES + 1):
        fresh = folder / "fresh"
        fresh.write_text(str(number % 10) * 4096)
        replace(fresh, target)
    mine.send(None)
    torn: int = mine.recv()
    reader.join()
    return torn


def count_mkdir_winners(folder: Path, racers: int, races: int, make: Callable[[Path], None] = os.mkdir) -> list[int]:
    """Let processes race to make the same folders; return how many succeeded in each race.

    Args:
        folder: Where to do it.
        racers: Number of processes.
        races: Number of folders.
        make: How a folder is made.
    """
    start = multiprocessing.get_context("fork").Barrier(racers)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(racers)]
    processes = [_fork(_race, folder, races, make, start, theirs) for _, theirs in pipes]
    won = [mine.recv() for mine, _ in pipes]
    for process in processes:
        process.join()
    return [sum(one) for one in zip(*won, strict=True)]


def try_mkdir(path: Path, make: Callable[[Path], None] = os.mkdir) -> bool:
    """Return whether it was this process that made the folder."""
    try:
        make(path)
    except FileExistsError:
        return False
    return True


def file_server_time(folder: Path) -> float:
    """Return the file server's time, in seconds since 1970 UTC."""
    probe = folder / "clock"
    probe.touch()
    return probe.stat().st_mtime


def file_system_of(path: Path) -> tuple[str, str]:
    """Return the type of the file system that holds ``path``, and where it is mounted; empty where that is unknown."""
    found = ("", "")
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    resolved = path.resolve()
    for line in lines:
        left, _, right = line.partition(" - ")
        mount = left.split()[4].replace("\\040", " ")
        # Later mounts lie over earlier ones.
        if resolved.is_relative_to(mount) and len(mount) >= len(found[1]):
            found = (right.split()[0], mount)
    return found


def _kind(where: Path) -> CheckResult:
    kind, mount = file_system_of(where)
    if not kind:
        return unknown_result(GROUP, "folder", str(where))
    todo = "what lies here is gone after a restart of the machine: name another folder with --run"
    return check_result(GROUP, "folder", f"{where} ({kind} at {mount})", warn=todo if kind in IN_MEMORY else "")


def _free_bytes(where: Path) -> int:
    found = os.statvfs(where)
    return found.f_bavail * found.f_frsize


def _fork(work: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process  # type: ignore[return-value]


def _read_again_and_again(target: Path, pipe: Connection) -> None:
    torn = 0
    while not pipe.poll():
        try:
            text = target.read_text()
        except FileNotFoundError:
            text = ""
        torn += len(text) != 4096 or len(set(text)) != 1
    pipe.send(torn)


def _race(folder: Path, races: int, make: Callable[[Path], None], start: object, pipe: Connection) -> None:
    won = []
    for number in range(races):
        start.wait()  # type: ignore[attr-defined]
        won.append(try_mkdir(folder / f"race-{number}", make))
    pipe.send(won)


RECENT_STEPS = 200
STEPS_AFTER_NOTICE = 2
"""The ranks agree to stop within two steps of the notice."""
SAVES_AFTER_NOTICE = 2
"""The save that may be under way, and the last one."""


@dataclass(frozen=True, kw_only=True)
class SaveCost:
    """What a run's folder shows.

    Attributes:
        size: Bytes of its newest checkpoint.
        kept: Bytes of all checkpoints that are there.
        step_seconds: Median time of its last steps.
    """

    size: int
    kept: int
    step_seconds: float

    def stop_seconds(self, speed: DiskSpeed) -> float:
        """Return about how long the run goes on after a notice, at this speed of the file system."""
        return STEPS_AFTER_NOTICE * self.step_seconds + SAVES_AFTER_NOTICE * speed.save_seconds(self.size)


def read_save_cost(run: RunFolder) -> SaveCost | None:
    """Return what the folder shows; None where no checkpoint or no step is there yet."""
    folders = [run.checkpoints / str(name) for name in list_checkpoints(run)]
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in folders if (path / COMMIT).exists()]
    steps = [row["step_seconds"] for row in merged_metrics(run.path)[-RECENT_STEPS:]]
    if not sizes or not steps:
        return None
    return SaveCost(size=sizes[-1], kept=sum(sizes), step_seconds=statistics.median(steps))
