"""The end of a rank whose step overruns its time: stacks into its log, the ranks at fault by name, exit code 70."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from typing import Any

from hsadml_dist.config.run import RunConfig
from hsadml_dist.errors import ExitCode
from hsadml_dist.run.entry import Entry
from hsadml_dist.run.events import event_row
from hsadml_dist.run.heartbeat import Signs
from hsadml_dist.run.rows import RowWriter
from hsadml_dist.run.signs import Mark, Seen, Stage, Whereabouts, read_signs
from hsadml_dist.stop.deadman import Deadman, Will
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
        limit = settings.step_timeout_seconds
        self._dog = Watchdog(entry, self._where, self._signs, limit, deadman) if limit else None

    @property
    def place(self) -> str:
        """Where this rank is, in words."""
        return f"at step {self._where.mark.step} (stage {self._where.mark.stage})"

    def at(self, step: int, stage: Stage) -> None:
        """Note that ``stage`` of ``step`` begins."""
        self._where.at(step, stage)

    def let_report(self) -> None:
        """Wait for the end of the process if the watchdog is about to bring it about; return at once otherwise."""
        if self._dog is not None:
            self._dog.let_report()

    def close(self) -> None:
        """Stop signs and watchdog."""
        if self._dog is not None:
            self._dog.close()
        self._signs.close()


class Watchdog:
    """A thread that counts the seconds of the present step."""

    def __init__(self, entry: Entry, where: Whereabouts, signs: Signs, limit: float, deadman: Deadman | None) -> None:
        self._entry, self._where, self._signs, self._limit, self._deadman = entry, where, signs, limit, deadman
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
        """Stop; the deadman is told to wait for ever."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        span, spent, before = -1, 0.0, time.monotonic()
        while not self._over.wait(TICK_SECONDS):
            now, mark = time.monotonic(), self._where.mark
            spent = spent + min(now - before, LONGEST_TICK) if mark.span == span else 0.0
            span, before = mark.span, now
            allowed = self._limit * (SLOW_FACTOR if mark.slow else 1)
            if spent >= allowed:
                self._bark(mark, spent)
            self._tell(mark, allowed - spent)
        self._tell(self._where.mark, 1e9)

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
            sys.stderr.write(f"hsadml: rank {self._rank}: {_headline(mark, spent)}; no more can be said: {fault}\n")
        finally:
            sys.stderr.flush()
            os._exit(ExitCode.INTERNAL)

    def _write_stacks(self, mark: Mark, spent: float) -> None:
        with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as file:
            file.write(f"{_headline(mark, spent)}; the stacks of all threads:\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _report(self, mark: Mark, spent: float, ranks: list[Seen]) -> None:
        named = hanging(ranks)
        text = "; ".join(described(one) for one in named)
        sys.stderr.write(f"hsadml: rank {self._rank}: {_headline(mark, spent)}: {text}; stacks in {self._log}\n")
        if reporter(ranks) == self._rank:
            detail = self._detail(mark, spent) | {"ranks": [one.rank for one in named], "reason": text}
            RowWriter(self._entry.attempt.events).write(self._event(mark, detail))

    def _tell(self, mark: Mark, left: float) -> None:
        if self._deadman is None:
            return
        reason = f"rank {self._rank} lets no Python code run, in stage {mark.stage} of step {mark.step}"
        line = f"hsadml: rank {self._rank}: {_headline(mark, self._limit)}: {reason}; stacks in {self._log}"
        alone = self._entry.comm.topology.world_size == 1  # with peers, one of them records it
        detail = self._detail(mark, self._limit) | {"ranks": [self._rank], "reason": reason}
        events = str(self._entry.attempt.events) if alone else None
        self._deadman.tell(Will(left=left, line=line, events=events, event=self._event(mark, detail)))

    def _detail(self, mark: Mark, spent: float) -> dict[str, Any]:
        return {"stage": mark.stage, "seconds": round(spent, 2), "told_by": self._rank}

    def _event(self, mark: Mark, detail: dict[str, Any]) -> dict[str, Any]:
        holder = self._entry.holder
        return event_row(self._entry.attempt, holder.job, holder.restart, "hang", max(0, mark.step - 1), **detail)


def _headline(mark: Mark, spent: float) -> str:
    return f"hang: step {mark.step} has not ended after {spent:.0f} s (stage {mark.stage}; run.step_timeout_seconds)"
