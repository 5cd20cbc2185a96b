"""A sign of life that other hosts can see."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

BEAT_SECONDS = 5.0


class Heartbeat:
    """Touches a file every few seconds, from a thread of its own, until closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            # A file server that is away for a moment must not end the beats: their end lets others take the run over.
            with contextlib.suppress(OSError):
                self._path.touch()
