"""Signs of life that other hosts can see: that the attempt lives, and where each of its ranks is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from hsadml_dist.run.folder import AttemptFolder
from hsadml_dist.run.signs import PositionRecorder, RankHeartbeat, write_rank_heartbeat

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
