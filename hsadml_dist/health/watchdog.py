"""Watchdog: end a rank whose step exceeds its time limit.

The rank dumps its stacks to its log, names the hanging ranks, and exits with code 70.
"""

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
    AttemptHeartbeat,
    PeerStatus,
    PositionRecorder,
    RankHeartbeatWriter,
    RankPosition,
    TrainingStage,
    read_peer_statuses,
)
from hsadml_dist.printable import printable
from hsadml_dist.run.history import EventLog
from hsadml_dist.run.rendezvous import RankContext

TICK_SECONDS = 0.25
LONGEST_TICK = 1.0
"""Upper bound for the time counted between two polls: a longer gap means that this process was suspended."""
SETTLE_SECONDS = 0.5
"""Time to wait for the heartbeats of the peers, who exceed the limit within one tick of this rank."""
SLOW_FACTOR = 10
"""Time limit of the start, the first step (compilation, caches), a save and the evaluation, relative to a step."""


class HealthMonitor:
    """Publishes this rank's position in heartbeats and guards each step by a time limit."""

    def __init__(self, context: RankContext, settings: RunConfig, external_watchdog: ExternalWatchdog | None) -> None:
        """Start the heartbeats and, unless it is disabled, the watchdog.

        Args:
            settings: The section ``run``, for its time limit.
            external_watchdog: Acts if this process cannot; None to do without.
        """
        topology = context.comm.topology
        self._recorder = PositionRecorder()
        self._heartbeat = AttemptHeartbeat(context.attempt.heartbeat) if topology.is_rank_zero else None
        self._rank_heartbeat = RankHeartbeatWriter(context.attempt, topology.rank, self._recorder)
        self._limit = limit = settings.step_timeout_seconds
        self._watchdog = Watchdog(context, self._recorder, self._rank_heartbeat, limit) if limit else None
        self._external = external_watchdog if limit else None
        if self._external is not None:
            self._external.attach(_watched_rank(context))
            self.enter_stage(0, "start")

    @property
    def position(self) -> str:
        """This rank's position as text."""
        position = self._recorder.position
        return f"at step {position.step} (stage {position.stage})"

    def enter_stage(self, step: int, stage: TrainingStage) -> None:
        """Record that ``stage`` of ``step`` begins."""
        self._recorder.enter_stage(step, stage)
        if self._external is not None and self._limit is not None:
            position = self._recorder.position
            self._external.update(position, time_limit(position, self._limit))

    def wait_for_report(self) -> None:
        """Wait for the end of the process if the watchdog is about to end it; otherwise return at once."""
        if self._watchdog is not None:
            self._watchdog.wait_for_report()

    def close(self) -> None:
        """Stop heartbeats and watchdog."""
        if self._external is not None:
            self._external.update(self._recorder.position, 0.0)
        if self._watchdog is not None:
            self._watchdog.close()
        self._rank_heartbeat.close()
        if self._heartbeat is not None:
            self._heartbeat.close()


class Watchdog:
    """A thread that measures the time of the current span and ends the process when it exceeds the limit."""

    def __init__(
        self, context: RankContext, recorder: PositionRecorder, rank_heartbeat: RankHeartbeatWriter, limit: float
    ) -> None:
        self._context, self._recorder, self._rank_heartbeat = context, recorder, rank_heartbeat
        self._limit, self._rank = limit, context.comm.topology.rank
        self._log = context.attempt.log(self._rank)
        self._closed, self._reporting = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def wait_for_report(self) -> None:
        """See :meth:`HealthMonitor.wait_for_report`."""
        # A peer that exceeded the limit a tick earlier has exited: this thread acts within the next tick.
        if self._reporting.wait(2 * TICK_SECONDS):
            self._thread.join()

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        span, spent, before = -1, 0.0, time.monotonic()
        while not self._closed.wait(TICK_SECONDS):
            now, position = time.monotonic(), self._recorder.position
            spent = spent + min(now - before, LONGEST_TICK) if position.span == span else 0.0
            span, before = position.span, now
            if spent >= time_limit(position, self._limit):
                self._report_and_exit(position, spent)

    def _report_and_exit(self, position: RankPosition, spent: float) -> None:
        self._reporting.set()
        try:
            with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as file:
                file.write(f"{hang_headline(position.step, position.stage, spent)}; the stacks of all threads:\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            self._rank_heartbeat.write()
            time.sleep(SETTLE_SECONDS)
            world_size = self._context.comm.topology.world_size
            self._report(position, spent, read_peer_statuses(self._context.attempt, world_size, self._rank))
        except OSError as fault:
            self._print(position, spent, f"the run folder cannot be read: {fault}")
        finally:
            sys.stderr.flush()
            os._exit(ExitCode.INTERNAL_ERROR)

    def _report(self, position: RankPosition, spent: float, ranks: list[PeerStatus]) -> None:
        hanging = find_hanging_ranks(ranks)
        text = "; ".join(map(describe_peer, hanging))
        self._print(position, spent, f"{text}; stacks in {self._log}")
        if choose_reporter(ranks) == self._rank:
            self._record(position, spent, [peer.rank for peer in hanging], text)

    def _print(self, position: RankPosition, spent: float, text: str) -> None:
        headline = hang_headline(position.step, position.stage, spent)
        sys.stderr.write(printable(f"hsadml: rank {self._rank}: {headline}: {text}") + "\n")

    def _record(self, position: RankPosition, spent: float, ranks: list[int], reason: str) -> None:
        events = EventLog(self._context.attempt, self._context.holder.job, self._context.holder.restart)
        detail = {"ranks": ranks, "stage": position.stage, "seconds": round(spent, 2), "told_by": self._rank}
        events.write("hang", max(0, position.step - 1), **detail, reason=reason)


def time_limit(position: RankPosition, limit: float) -> float:
    """Return the time limit of the span at ``position`` in seconds, where ``limit`` is that of a step."""
    return limit * (SLOW_FACTOR if position.slow else 1)


def _watched_rank(context: RankContext) -> WatchedRank:
    return WatchedRank(
        rank=context.comm.topology.rank,
        attempt=str(context.attempt.path),
        alone=context.comm.topology.world_size == 1,
        job=context.holder.job,
        restart=context.holder.restart,
    )
