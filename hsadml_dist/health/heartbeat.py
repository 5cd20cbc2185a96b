"""Heartbeats of an attempt and of its ranks: which step and stage each rank is in, and whether it waits for peers.

A rank that is suspended, or whose machine is down, cannot report anything; its peers read its last heartbeat instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, get_args

from hsadml_dist.run.folder import AttemptFolder

TrainingStage = Literal["start", "data", "vote", "step", "save", "evaluate"]
STAGES: tuple[str, ...] = get_args(TrainingStage)
STEP_STAGES = {"data", "vote", "step"}
WAITING_MODULES = ("torch.distributed", "torch.nn.parallel.distributed")
BACKWARD = "_engine_run_backward"
"""In here DistributedDataParallel waits for the gradients of the others."""


@dataclass(frozen=True, kw_only=True)
class RankPosition:
    """Where a rank's training is.

    Attributes:
        step: The step that it is at.
        stage: What of the step.
        span: Number of the piece of work that has one time limit: a step from its data to its end, a save, ...
        slow: Whether this piece of work may take longer than a step.
    """

    step: int = 0
    stage: TrainingStage = "start"
    span: int = 0
    slow: bool = True


class PositionRecorder:
    """Where this rank's training is: set by the training itself, read by threads beside it."""

    def __init__(self) -> None:
        self.mark = RankPosition()
        self._first: int | None = None

    def enter_stage(self, step: int, stage: TrainingStage) -> None:
        """Note that ``stage`` of ``step`` begins."""
        before, in_step = self.mark, stage in STEP_STAGES
        if in_step and self._first is None:
            self._first = step
        same = step == before.step and (stage == before.stage or (in_step and before.stage in STEP_STAGES))
        span = before.span if same else before.span + 1
        # One assignment, so that a thread sees the old mark or the new one.
        self.mark = RankPosition(step=step, stage=stage, span=span, slow=not in_step or step == self._first)


@dataclass(frozen=True, kw_only=True)
class RankHeartbeat:
    """A rank's sign of life.

    Attributes:
        rank: Whose.
        step: The step that it is at.
        stage: What of the step.
        waits: Whether its main thread waits for other ranks.
        doing: The innermost place of its main thread, as module, line and function.
        time: When it was written, in seconds since 1970 UTC, by the rank's own clock.
    """

    rank: int
    step: int
    stage: TrainingStage
    waits: bool
    doing: str
    time: float

    @staticmethod
    def of(rank: int, mark: RankPosition) -> RankHeartbeat:
        """Return this process's sign at this moment."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        return RankHeartbeat(
            rank=rank,
            step=mark.step,
            stage=mark.stage,
            waits=_waits(frame),
            doing=_place(frame),
            time=time.time(),
        )


@dataclass(frozen=True, kw_only=True)
class PeerStatus:
    """What is known of a rank.

    Attributes:
        rank: Which one.
        sign: Its last sign; None: there is none.
        silent: Seconds since then, by the file server's clock; 0 for a rank without a sign.
    """

    rank: int
    sign: RankHeartbeat | None
    silent: float


def write_rank_heartbeat(attempt: AttemptFolder, sign: RankHeartbeat) -> None:
    """Replace the rank's sign; not forced to disk, since it is of no use after a crash of the machine."""
    path = attempt.rank_heartbeat(sign.rank)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(asdict(sign)) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_peer_statuses(attempt: AttemptFolder, world_size: int, own: int) -> list[PeerStatus]:
    """Return what is known of each rank, in rank order.

    Args:
        attempt: Whose ranks.
        world_size: How many there are.
        own: This process's rank, whose sign was written just now: it tells the file server's time.
    """
    # Listed first: a client of a network file system asks the server anew for the names in a folder that it opens.
    names = set(os.listdir(attempt.rank_heartbeats)) if attempt.rank_heartbeats.is_dir() else set()
    found: dict[int, tuple[RankHeartbeat, float]] = {}
    for rank in range(world_size):
        if attempt.rank_heartbeat(rank).name in names:
            with contextlib.suppress(OSError, ValueError, TypeError):
                found[rank] = _read(attempt, rank)
    now = found[own][1] if own in found else max((time for _, time in found.values()), default=0.0)
    return [
        PeerStatus(rank=rank, sign=found[rank][0], silent=max(0.0, now - found[rank][1]))
        if rank in found
        else PeerStatus(rank=rank, sign=None, silent=0.0)
        for rank in range(world_size)
    ]


def _read(attempt: AttemptFolder, rank: int) -> tuple[RankHeartbeat, float]:
    with attempt.rank_heartbeat(rank).open(encoding="utf-8") as file:
        return RankHeartbeat(**json.load(file)), os.fstat(file.fileno()).st_mtime


def _waits(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    module = str(frame.f_globals.get("__name__", ""))
    return module.startswith(WAITING_MODULES) or frame.f_code.co_name == BACKWARD


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return "nowhere"
    return f"{frame.f_globals.get('__name__', '?')}, line {frame.f_lineno}, {frame.f_code.co_name}"


HEARTBEAT_SECONDS = 5.0
RANK_HEARTBEAT_SECONDS = 1.0


class PeriodicTask:
    """Does something small again and again, from a thread of its own, until closed."""

    def __init__(self, name: str, seconds: float, beat: Callable[[], None]) -> None:
        self._beat, self._seconds = beat, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._over.wait(self._seconds):
            # A file server that is away for a moment must not end the beats: their end lets others take the run over.
            with contextlib.suppress(OSError):
                self._beat()


class AttemptHeartbeat(PeriodicTask):
    """Touches a file every few seconds, so that nobody takes the run for abandoned."""

    def __init__(self, path: Path) -> None:
        super().__init__("heartbeat", HEARTBEAT_SECONDS, path.touch)


class RankHeartbeatWriter(PeriodicTask):
    """Writes down about once a second where this rank is; the first time at once."""

    def __init__(self, attempt: AttemptFolder, rank: int, whereabouts: PositionRecorder) -> None:
        self._attempt, self._rank, self._whereabouts = attempt, rank, whereabouts
        with contextlib.suppress(OSError):
            attempt.rank_heartbeats.mkdir(exist_ok=True)
            self.write()
        super().__init__("signs", RANK_HEARTBEAT_SECONDS, self.write)

    def write(self) -> None:
        """Write the sign of this moment."""
        write_rank_heartbeat(self._attempt, RankHeartbeat.of(self._rank, self._whereabouts.mark))
