"""The end of a rank whose step overruns its time: stacks into its log, the ranks at fault by name, exit code 70."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time

from hsadml_dist.config.recipe import RunConfig
from hsadml_dist.errors import ExitCode
from hsadml_dist.health.external_watchdog import ExternalWatchdog, WatchedRank, hang_headline
from hsadml_dist.health.hang_report import choose_reporter, describe_peer, find_hanging_ranks
from hsadml_dist.health.heartbeat import (
    PeerStatus,
    PositionRecorder,
    RankHeartbeatWriter,
    RankPosition,
    TrainingStage,
    read_peer_statuses,
)
from hsadml_dist.run.history import event_row
from hsadml_dist.run.jsonl import JsonlWriter
from hsadml_dist.run.rendezvous import RankContext

TICK_SECONDS = 0.25
LONGEST_TICK = 1.0
"""A longer gap between two looks means that this process was stopped; no more than this counts as time of the step."""
SETTLE_SECONDS = 0.5
"""After its own sign a rank waits this long for those of its peers, who overrun within a tick of it."""
SLOW_FACTOR = 10
"""The start, the first step (compilation, caches), a save and the evaluation may take this many times as long."""


class HealthMonitor:
    """Where this rank is: told to its peers by signs of life, and watched so that no hang lasts for ever."""

    def __init__(self, context: RankContext, settings: RunConfig, external_watchdog: ExternalWatchdog | None) -> None:
        """Start the signs and, unless it is switched off, the watchdog.

        Args:
            context: This rank's place.
            settings: The time limit.
            external_watchdog: For the case that this process cannot act; None: nobody does.
        """
        self._where = PositionRecorder()
        self._signs = RankHeartbeatWriter(context.attempt, context.comm.topology.rank, self._where)
        self._limit = settings.step_timeout_seconds
        self._dog = Watchdog(context, self._where, self._signs, self._limit) if self._limit else None
        self._deadman = external_watchdog if self._limit else None
        if self._deadman is not None:
            self._deadman.introduce(_facts(context))
            self.enter_stage(0, "start")

    @property
    def position(self) -> str:
        """Where this rank is, in words."""
        return f"at step {self._where.mark.step} (stage {self._where.mark.stage})"

    def enter_stage(self, step: int, stage: TrainingStage) -> None:
        """Note that ``stage`` of ``step`` begins."""
        self._where.enter_stage(step, stage)
        if self._deadman is not None and self._limit is not None:
            mark = self._where.mark
            self._deadman.note(mark, time_limit(mark, self._limit))

    def wait_for_report(self) -> None:
        """Wait for the end of the process if the watchdog is about to bring it about; return at once otherwise."""
        if self._dog is not None:
            self._dog.wait_for_report()

    def close(self) -> None:
        """Stop signs and watchdog."""
        if self._deadman is not None:
            self._deadman.note(self._where.mark, 0.0)
        if self._dog is not None:
            self._dog.close()
        self._signs.close()


class Watchdog:
    """A thread that counts the seconds of the present step."""

    def __init__(self, context: RankContext, where: PositionRecorder, signs: RankHeartbeatWriter, limit: float) -> None:
        self._context, self._where, self._signs, self._limit = context, where, signs, limit
        self._rank = context.comm.topology.rank
        self._log = context.attempt.log(self._rank)
        self._over, self._barking = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def wait_for_report(self) -> None:
        """See :meth:`HealthMonitor.wait_for_report`."""
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
            if spent >= time_limit(mark, self._limit):
                self._bark(mark, spent)

    def _bark(self, mark: RankPosition, spent: float) -> None:
        """Say what hangs and end the process."""
        self._barking.set()
        try:
            self._write_stacks(mark, spent)
            self._signs.write()
            time.sleep(SETTLE_SECONDS)
            ranks = read_peer_statuses(self._context.attempt, self._context.comm.topology.world_size, self._rank)
            self._report(mark, spent, ranks)
        except OSError as fault:
            self._say(mark, spent, f"the run folder cannot be read: {fault}")
        finally:
            sys.stderr.flush()
            os._exit(ExitCode.INTERNAL_ERROR)

    def _write_stacks(self, mark: RankPosition, spent: float) -> None:
        with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as file:
            file.write(f"{hang_headline(mark.step, mark.stage, spent)}; the stacks of all threads:\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _report(self, mark: RankPosition, spent: float, ranks: list[PeerStatus]) -> None:
        named = find_hanging_ranks(ranks)
        text = "; ".join(describe_peer(one) for one in named)
        self._say(mark, spent, f"{text}; stacks in {self._log}")
        if choose_reporter(ranks) == self._rank:
            self._record(mark, spent, [one.rank for one in named], text)

    def _say(self, mark: RankPosition, spent: float, text: str) -> None:
        sys.stderr.write(f"hsadml: rank {self._rank}: {hang_headline(mark.step, mark.stage, spent)}: {text}\n")

    def _record(self, mark: RankPosition, spent: float, ranks: list[int], reason: str) -> None:
        attempt, holder = self._context.attempt, self._context.holder
        detail = {"ranks": ranks, "stage": mark.stage, "seconds": round(spent, 2), "told_by": self._rank}
        row = event_row(attempt, holder.job, holder.restart, "hang", max(0, mark.step - 1), **detail, reason=reason)
        JsonlWriter(attempt.events).write(row)


def time_limit(mark: RankPosition, limit: float) -> float:
    """Return the seconds that the piece of work at ``mark`` may take, where a step may take ``limit``."""
    return limit * (SLOW_FACTOR if mark.slow else 1)


def _facts(context: RankContext) -> WatchedRank:
    return WatchedRank(
        rank=context.comm.topology.rank,
        attempt=str(context.attempt.path),
        alone=context.comm.topology.world_size == 1,
        job=context.holder.job,
        restart=context.holder.restart,
    )
