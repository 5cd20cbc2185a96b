"""Checks of a run folder's file system: space, write speed, atomic rename and exclusive mkdir.

Checkpoints rely on a rename over an existing file being atomic: a reader sees the old content or the new one. Attempts
rely on exclusive mkdir: of several processes that create the same folder, exactly one succeeds.
"""

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
from multiprocessing.synchronize import Barrier
from pathlib import Path

from hsadml_dist.checkpoint.layout import COMMIT, list_checkpoints
from hsadml_dist.launch.doctor import CheckResult, check_result, unknown_result
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_metrics

GROUP = "file system"
MEBIBYTE = 2**20
GIBIBYTE = 2**30
TEST_BYTES = 64 * MEBIBYTE
"""Size of the file that the speed test writes and removes."""
SLOW_MB_PER_SECOND = 50.0
LOW_SPACE_GIB, MIN_SPACE_GIB = 10.0, 1.0
LOW_INODES, MIN_INODES = 100_000, 1_000
MAX_SKEW_SECONDS, VISIBLE_SKEW_SECONDS = 2.0, 0.1
RACERS, RACES, RENAMES = 4, 50, 200
IN_MEMORY = ("tmpfs", "ramfs")

RECENT_STEPS = 200
STEPS_AFTER_STOP_SIGNAL = 2
"""Ranks agree to stop within two steps of the signal."""
SAVES_AFTER_STOP_SIGNAL = 2
"""A save that may be in progress, and the final one."""

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, kw_only=True)
class DiskSpeed:
    """Write speed of a file system.

    Attributes:
        write_seconds: Seconds to write 64 MiB and force them to disk.
        hash_seconds: Seconds to compute their SHA-256, as a checkpoint does.
    """

    write_seconds: float
    hash_seconds: float

    @property
    def write_rate(self) -> float:
        """MB/s (10^6 bytes), without the hash."""
        return TEST_BYTES / 1e6 / self.write_seconds

    def save_seconds(self, size: int) -> float:
        """Return the estimated time to save a checkpoint of ``size`` bytes."""
        return size / TEST_BYTES * (self.write_seconds + self.hash_seconds)


@dataclass(frozen=True, kw_only=True)
class SaveCost:
    """Size of a run's checkpoints and duration of its steps.

    Attributes:
        size: Bytes of the newest checkpoint.
        kept: Bytes of all checkpoints in the folder.
        step_seconds: Median duration of recent steps.
    """

    size: int
    kept: int
    step_seconds: float

    def stop_seconds(self, speed: DiskSpeed) -> float:
        """Return the estimated time from a stop signal to the end of the last save."""
        return STEPS_AFTER_STOP_SIGNAL * self.step_seconds + SAVES_AFTER_STOP_SIGNAL * speed.save_seconds(self.size)


def read_save_cost(run: RunFolder) -> SaveCost | None:
    """Return the save cost of a run; None without a checkpoint or a step."""
    folders = [run.checkpoints / str(name) for name in list_checkpoints(run)]
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in folders if (path / COMMIT).exists()]
    steps = [row["step_seconds"] for row in merged_metrics(run.path)[-RECENT_STEPS:]]
    if not sizes or not steps:
        return None
    return SaveCost(size=sizes[-1], kept=sum(sizes), step_seconds=statistics.median(steps))


def existing_parent(folder: Path) -> Path:
    """Return ``folder``, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Create a folder in ``parent`` and remove it at the end; raise OSError if ``parent`` is not writable."""
    folder = Path(tempfile.mkdtemp(prefix=".hsadml-doctor-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_disk(parent: Path, needed: int | None) -> tuple[list[CheckResult], DiskSpeed | None]:
    """Check the file system of a folder.

    Args:
        parent: An existing folder; the checks use a temporary folder in it.
        needed: Bytes of the checkpoints that the run keeps; None if unknown.

    Returns:
        The results, and the speed of the file system; None if it is not writable.
    """
    results = [_check_kind(parent)]
    try:
        with temporary_folder(parent) as folder:
            # Before the speed test, whose file would count.
            stats = os.statvfs(parent)
            results.append(check_free_space(stats.f_bavail * stats.f_frsize, needed))
            results.append(check_free_inodes(stats.f_files, stats.f_favail))
            speed = measure_speed(folder / "speed")
            results.append(check_write_rate(speed.write_rate))
            results.append(check_atomic_rename(count_torn_reads(folder)))
            results.append(check_exclusive_mkdir(count_mkdir_winners(folder, RACERS, RACES)))
            clock = folder / "clock"
            clock.touch()
            results.append(check_file_clock(clock.stat().st_mtime - time.time()))
            return results, speed
    except OSError as fault:
        todo = "free some space, or name another folder with --run"
        return [*results, check_result(GROUP, "writing", f"{parent}: {fault.strerror or fault}", fail=todo)], None


def check_free_space(free: int, needed: int | None) -> CheckResult:
    """Check the free bytes. Quotas are not visible here."""
    found = f"{free / GIBIBYTE:.1f} GiB (quotas are not checked)"
    if needed is not None:
        found += f"; the run's checkpoints take {needed / GIBIBYTE:.2f} GiB"
    todo = "free some space, or lower checkpoint.keep"
    too_low = free < max(MIN_SPACE_GIB * GIBIBYTE, needed or 0)
    low = free < LOW_SPACE_GIB * GIBIBYTE
    return check_result(GROUP, "free space", found, fail=todo if too_low else "", warn=todo if low else "")


def check_free_inodes(total: int, free: int) -> CheckResult:
    """Check the free inodes. File systems that create them on demand report 0 of 0."""
    if total == 0:
        return check_result(GROUP, "free inodes", "not limited by this file system")
    todo = "remove small files: the run folder of a long run contains some thousands"
    fail, warn = (todo if free < limit else "" for limit in (MIN_INODES, LOW_INODES))
    return check_result(GROUP, "free inodes", f"{free:,}", fail=fail, warn=warn)


def check_write_rate(rate: float, what: str = "64 MiB, one file", group: str = GROUP) -> CheckResult:
    """Check a write rate in MB/s."""
    todo = "checkpoints will be slow: keep run folders on the cluster's fast (scratch) file system"
    found = f"{rate:.0f} MB/s ({what})"
    return check_result(group, "write + fsync", found, warn=todo if rate < SLOW_MB_PER_SECOND else "")


def check_atomic_rename(torn: int) -> CheckResult:
    """Check the number of reads during renames that found an incomplete file."""
    todo = "checkpoints and records could be incomplete: use another file system"
    found = f"atomic in {RENAMES} of {RENAMES} replacements" if not torn else f"{torn} reads found an incomplete file"
    return check_result(GROUP, "rename", found, fail=todo if torn else "")


def check_exclusive_mkdir(wins: Sequence[int], who: str = f"{RACERS} processes", group: str = GROUP) -> CheckResult:
    """Check the number of processes that succeeded in each race to create a folder."""
    wrong = sum(count != 1 for count in wins)
    todo = "two starts could write the same run: use another file system"
    found = f"one winner in {len(wins) - wrong} of {len(wins)} races of {who}"
    return check_result(group, "exclusive mkdir", found, fail=todo if wrong else "")


def check_file_clock(seconds: float) -> CheckResult:
    """Check by how many seconds the file server's clock is ahead of this machine's."""
    todo = "synchronise the clocks (chrony, ntp): times in logs and records will not match"
    skew = f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    found = skew if abs(seconds) >= VISIBLE_SKEW_SECONDS else f"within {VISIBLE_SKEW_SECONDS} s of this machine's"
    return check_result(GROUP, "file clock", found, warn=todo if abs(seconds) > MAX_SKEW_SECONDS else "")


def measure_speed(path: Path) -> DiskSpeed:
    """Time a write of 64 MiB of random bytes, forced to disk and removed, and the hash of as many bytes."""
    block = os.urandom(MEBIBYTE)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(TEST_BYTES // MEBIBYTE):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    written = time.perf_counter()
    path.unlink()
    hash_start = time.perf_counter()
    digest = hashlib.sha256()
    for _ in range(TEST_BYTES // MEBIBYTE):
        digest.update(block)
    return DiskSpeed(write_seconds=written - start, hash_seconds=time.perf_counter() - hash_start)


def count_torn_reads(folder: Path, replace: Callable[[Path, Path], None] = os.replace) -> int:
    """Replace a file in ``folder`` while another process reads it, and count the reads of an incomplete file."""
    target = folder / "target"
    target.write_text("0" * 4096)
    mine, theirs = multiprocessing.Pipe()
    reader = _fork.Process(target=_read_repeatedly, args=(target, theirs), daemon=True)
    reader.start()
    for number in range(1, RENAMES + 1):
        fresh = folder / "fresh"
        fresh.write_text(str(number % 10) * 4096)
        replace(fresh, target)
    mine.send(None)
    torn: int = mine.recv()
    reader.join()
    return torn


def count_mkdir_winners(folder: Path, racers: int, races: int, make: Callable[[Path], None] = os.mkdir) -> list[int]:
    """Let ``racers`` processes race to create the same folders in ``folder``; return the winners of each race."""
    start = _fork.Barrier(racers)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(racers)]
    processes = [
        _fork.Process(target=_race, args=(folder, races, make, start, theirs), daemon=True) for _, theirs in pipes
    ]
    for process in processes:
        process.start()
    won = [mine.recv() for mine, _ in pipes]
    for process in processes:
        process.join()
    return [sum(one) for one in zip(*won, strict=True)]


def try_mkdir(path: Path, make: Callable[[Path], None] = os.mkdir) -> bool:
    """Return whether this process created the folder."""
    try:
        make(path)
    except FileExistsError:
        return False
    return True


def file_system_of(path: Path) -> tuple[str, str]:
    """Return the type and mount point of the file system that contains ``path``; empty strings if unknown."""
    found = ("", "")
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    resolved = path.resolve()
    for line in lines:
        left, _, right = line.partition(" - ")
        mount = left.split()[4].replace("\\040", " ")
        # A later mount hides an earlier one on the same point.
        if resolved.is_relative_to(mount) and len(mount) >= len(found[1]):
            found = (right.split()[0], mount)
    return found


def _check_kind(folder: Path) -> CheckResult:
    kind, mount = file_system_of(folder)
    if not kind:
        return unknown_result(GROUP, "folder", str(folder))
    todo = "it is in memory and lost when the machine restarts: name another folder with --run"
    return check_result(GROUP, "folder", f"{folder} ({kind} at {mount})", warn=todo if kind in IN_MEMORY else "")


def _read_repeatedly(target: Path, pipe: Connection) -> None:
    torn = 0
    while not pipe.poll():
        try:
            text = target.read_text()
        except FileNotFoundError:
            text = ""
        torn += len(text) != 4096 or len(set(text)) != 1
    pipe.send(torn)


def _race(folder: Path, races: int, make: Callable[[Path], None], start: Barrier, pipe: Connection) -> None:
    won = []
    for number in range(races):
        start.wait()
        won.append(try_mkdir(folder / f"race-{number}", make))
    pipe.send(won)
