"""The end of a rank whose step overruns its time: stacks into its log, the ranks at fault by name, exit code 70."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time

from hsadml_dist.config.run import RunConfig
from hsadml_dist.errors import ExitCode
from hsadml_dist.run.entry import Entry
from hsadml_dist.run.events import event_row
from hsadml_dist.run.heartbeat import Signs
from hsadml_dist.run.rows import RowWriter
from hsadml_dist.run.signs import Mark, Seen, Stage, Whereabouts, read_signs
from hsadml_dist.stop.deadman import Deadman, Facts, headline
from hsadml_dist.stop.hang import described, hanging, reporter

TICK_SECONDS = 0.25
LONGEST_TICK = 1.0
"""A longer gap between two looks means that this process was stopped; no more than this counts as time of the step."""
SETTLE_SECONDS = 0.5
"""After its own sign a rank waits this long for those of its peers, who overrun within a tick of it."""
SLOW_FACTOR = 10
"""The start, the first step (compilation, caches), a save and the evaluation may take this many times as long."""


class Watch:
    """Where this rank is: told to its peers by signs of life, and watched so that no hang lasts for ever."""

    def __init__(self, entry: Entry, settings: RunConfig, deadman: Deadman | None) -> None:
        """Start the signs and, unless it is switched off, the watchdog.

        Args:
            entry: This rank's place.
            settings: The time limit.
            deadman: For the case that this process cannot act; None: nobody does.
        """
        self._where = Whereabouts()
        self._signs = Signs(entry.attempt, entry.comm.topology.rank, self._where)
        self._limit = settings.step_timeout_seconds
        self._dog = Watchdog(entry, self._where, self._signs, self._limit) if self._limit else None
        self._deadman = deadman if self._limit else None
        if self._deadman is not None:
            self._deadman.introduce(_facts(entry))
            self.at(0, "start")

    @property
    def place(self) -> str:
        """Where this rank is, in words."""
        return f"at step {self._where.mark.step} (stage {self._where.mark.stage})"

    def at(self, step: int, stage: Stage) -> None:
        """Note that ``stage`` of ``step`` begins."""
        self._where.at(step, stage)
        if self._deadman is not None and self._limit is not None:
            mark = self._where.mark
            self._deadman.note(mark, allowed_for(mark, self._limit))

    def let_report(self) -> None:
        """Wait for the end of the process if the watchdog is about to bring it about; return at once otherwise."""
        if self._dog is not None:
            self._dog.let_report()

    def close(self) -> None:
        """Stop signs and watchdog."""
        if self._deadman is not None:
            self._deadman.note(self._where.mark, 0.0)
        if self._dog is not None:
            self._dog.close()
        self._signs.close()


class Watchdog:
    """A thread that counts the seconds of the present step."""

    def __init__(self, entry: Entry, where: Whereabouts, signs: Signs, limit: float) -> None:
        self._entry, self._where, self._signs, self._limit = entry, where, signs, limit
        self._rank = entry.comm.topology.rank
        self._log = entry.attempt.log(self._rank)
        self._over, self._barking = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def let_report(self) -> None:
        """See :meth:`Watch.let_report`."""
        # A peer that overran a tick earlier has left: this thread's turn comes within the next tick.
        if self._barking.wait(2 * TICK_SECONDS):
            self._thread.join()

    def close(self) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        span, spent, before = -1, 0.0, time.monotonic()
        while not self._over.wait(TICK_SECONDS):
            now, mark = time.monotonic(), self._where.mark
            spent = spent + min(now - before, LONGEST_TICK) if mark.span == span else 0.0
            span, before = mark.span, now
            if spent >= allowed_for(mark, self._limit):
                self._bark(mark, spent)

    def _bark(self, mark: Mark, spent: float) -> None:
        """Say what hangs and end the process."""
        self._barking.set()
        try:
            self._write_stacks(mark, spent)
            self._signs.write()
            time.sleep(SETTLE_SECONDS)
            ranks = read_signs(self._entry.attempt, self._entry.comm.topology.world_size, self._rank)
            self._report(mark, spent, ranks)
        except OSError as fault:
            self._say(mark, spent, f"the run folder cannot be read: {fault}")
        finally:
            sys.stderr.flush()
            os._exit(ExitCode.INTERNAL)

    def _write_stacks(self, mark: Mark, spent: float) -> None:
        with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as file:
            file.write(f"{headline(mark.step, mark.stage, spent)}; the stacks of all threads:\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _report(self, mark: Mark, spent: float, ranks: list[Seen]) -> None:
        named = hanging(ranks)
        text = "; ".join(described(one) for one in named)
        self._say(mark, spent, f"{text}; stacks in {self._log}")
        if reporter(ranks) == self._rank:
            self._record(mark, spent, [one.rank for one in named], text)

    def _say(self, mark: Mark, spent: float, text: str) -> None:
        sys.stderr.write(f"hsadml: rank {self._rank}: {headline(mark.step, mark.stage, spent)}: {text}\n")

    def _record(self, mark: Mark, spent: float, ranks: list[int], reason: str) -> None:
        attempt, holder = self._entry.attempt, self._entry.holder
        detail = {"ranks": ranks, "stage": mark.stage, "seconds": round(spent, 2), "told_by": self._rank}
        row = event_row(attempt, holder.job, holder.restart, "hang", max(0, mark.step - 1), **detail, reason=reason)
        RowWriter(attempt.events).write(row)


def allowed_for(mark: Mark, limit: float) -> float:
    """Return the seconds that the piece of work at ``mark`` may take, where a step may take ``limit``."""
    return limit * (SLOW_FACTOR if mark.slow else 1)


def _facts(entry: Entry) -> Facts:
    return Facts(
        rank=entry.comm.topology.rank,
        attempt=str(entry.attempt.path),
        alone=entry.comm.topology.world_size == 1,
        job=entry.holder.job,
        restart=entry.holder.restart,
    )
