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

from hsadml_dist.atomic import write_text
from hsadml_dist.run.folder import AttemptFolder

TrainingStage = Literal["start", "data", "vote", "step", "save", "evaluate"]
STAGES: tuple[str, ...] = get_args(TrainingStage)
STEP_STAGES = {"data", "vote", "step"}
WAITING_MODULES = ("torch.distributed", "torch.nn.parallel.distributed")
BACKWARD = "_engine_run_backward"
"""In this function DistributedDataParallel waits for the gradients of the other ranks."""

HEARTBEAT_SECONDS = 5.0
RANK_HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class RankPosition:
    """Where a rank is in the training.

    Attributes:
        span: Number of the timed span: one span has one time limit, for instance a step from its data to its end.
        slow: True if this span may take longer than a step.
    """

    step: int = 0
    stage: TrainingStage = "start"
    span: int = 0
    slow: bool = True


class PositionRecorder:
    """The rank's current position: set by the training loop, read by other threads."""

    def __init__(self) -> None:
        self.position = RankPosition()
        self._first_step: int | None = None

    def enter_stage(self, step: int, stage: TrainingStage) -> None:
        """Record that ``stage`` of ``step`` begins."""
        before, in_step = self.position, stage in STEP_STAGES
        if in_step and self._first_step is None:
            self._first_step = step
        same_span = step == before.step and (stage == before.stage or (in_step and before.stage in STEP_STAGES))
        span = before.span if same_span else before.span + 1
        # A single assignment, so that a thread sees either the old position or the new one.
        self.position = RankPosition(step=step, stage=stage, span=span, slow=not in_step or step == self._first_step)


@dataclass(frozen=True, kw_only=True)
class RankHeartbeat:
    """The content of a rank's heartbeat file.

    Attributes:
        waits: True if its main thread waits for other ranks.
        doing: Innermost frame of its main thread, as module, line and function.
        time: When it was written, by the rank's own clock, in seconds since 1970 UTC.
    """

    rank: int
    step: int
    stage: TrainingStage
    waits: bool
    doing: str
    time: float

    @staticmethod
    def of(rank: int, position: RankPosition) -> RankHeartbeat:
        """Return the heartbeat of this process at this moment."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        return RankHeartbeat(
            rank=rank,
            step=position.step,
            stage=position.stage,
            waits=_waits_for_peers(frame),
            doing=_describe_frame(frame),
            time=time.time(),
        )


@dataclass(frozen=True, kw_only=True)
class PeerStatus:
    """What this rank knows about another one.

    Attributes:
        heartbeat: Its last heartbeat, or None if there is none.
        age: Seconds since then by the file server's clock; 0 for a rank without heartbeat.
    """

    rank: int
    heartbeat: RankHeartbeat | None
    age: float


def write_rank_heartbeat(attempt: AttemptFolder, heartbeat: RankHeartbeat) -> None:
    """Replace the rank's heartbeat file; not forced to disk, because it is useless after a crash of the machine."""
    write_text(attempt.rank_heartbeat(heartbeat.rank), json.dumps(asdict(heartbeat)) + "\n", durable=False)


def read_peer_statuses(attempt: AttemptFolder, world_size: int, own: int) -> list[PeerStatus]:
    """Return the status of every rank, in rank order.

    Args:
        own: This process's rank; its heartbeat was just written and so provides the file server's current time.
    """
    # Listed first: a client of a network file system asks the server again for the names in a folder that it opens.
    names = set(os.listdir(attempt.rank_heartbeats)) if attempt.rank_heartbeats.is_dir() else set()
    found: dict[int, tuple[RankHeartbeat, float]] = {}
    for rank in range(world_size):
        path = attempt.rank_heartbeat(rank)
        if path.name in names:
            with contextlib.suppress(OSError, ValueError, TypeError), path.open(encoding="utf-8") as file:
                found[rank] = RankHeartbeat(**json.load(file)), os.fstat(file.fileno()).st_mtime
    now = found[own][1] if own in found else max((written for _, written in found.values()), default=0.0)
    known = [(rank, *found.get(rank, (None, now))) for rank in range(world_size)]
    return [PeerStatus(rank=rank, heartbeat=last, age=max(0.0, now - written)) for rank, last, written in known]


class PeriodicTask:
    """Call a function repeatedly from a thread until closed."""

    def __init__(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        self._function, self._seconds = function, seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._seconds):
            # A short outage of the file server must not end the heartbeats: another start would then take over the run.
            with contextlib.suppress(OSError):
                self._function()


class AttemptHeartbeat(PeriodicTask):
    """Touch the attempt's heartbeat file every few seconds, which keeps other starts from taking over the run."""

    def __init__(self, path: Path) -> None:
        super().__init__("heartbeat", HEARTBEAT_SECONDS, path.touch)


class RankHeartbeatWriter(PeriodicTask):
    """Write this rank's heartbeat immediately and then about once per second."""

    def __init__(self, attempt: AttemptFolder, rank: int, recorder: PositionRecorder) -> None:
        self._attempt, self._rank, self._recorder = attempt, rank, recorder
        self._lock = threading.Lock()
        with contextlib.suppress(OSError):
            attempt.rank_heartbeats.mkdir(exist_ok=True)
            self.write()
        super().__init__("rank-heartbeat", RANK_HEARTBEAT_SECONDS, self.write)

    def write(self) -> None:
        """Write the current heartbeat."""
        with self._lock:  # the watchdog's thread calls this, too, and both would use the same temporary file
            write_rank_heartbeat(self._attempt, RankHeartbeat.of(self._rank, self._recorder.position))


def _waits_for_peers(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    module = str(frame.f_globals.get("__name__", ""))
    return module.startswith(WAITING_MODULES) or frame.f_code.co_name == BACKWARD


def _describe_frame(frame: FrameType | None) -> str:
    if frame is None:
        return "no Python frame"
    return f"{frame.f_globals.get('__name__', '?')}, line {frame.f_lineno}, {frame.f_code.co_name}"
