"""A training from start to end, as each of its ranks sees it: the one place where all parts are put together."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hsadml_dist.checkpoint.background import Saver
from hsadml_dist.checkpoint.layout import CheckpointName, Progress, committed
from hsadml_dist.checkpoint.load import Choice, choose_checkpoint
from hsadml_dist.checkpoint.state import TrainingState
from hsadml_dist.comm import place, threads_for
from hsadml_dist.config import Recipe
from hsadml_dist.data.feed import Feed, open_feed
from hsadml_dist.data.loader import Batch
from hsadml_dist.engine.guard import Finding
from hsadml_dist.engine.learner import Learner, StepReport, build_learner
from hsadml_dist.errors import ConfigError, ExitCode, Fault, HsadmlError, NumericalError, RunError
from hsadml_dist.evaluation.verdict import judge_run
from hsadml_dist.garbage import collect_again
from hsadml_dist.models import EmbeddingNet, rank_dependent_layers
from hsadml_dist.resume import Resume, initial_network
from hsadml_dist.run.code import keep_code
from hsadml_dist.run.entry import Entry, enter
from hsadml_dist.run.folder import RunFolder, replace_text
from hsadml_dist.run.log import open_log
from hsadml_dist.run.no_progress import why_no_further
from hsadml_dist.run.records import Records, StepRow, open_records
from hsadml_dist.stop.agreement import StopAgreement
from hsadml_dist.stop.deadman import Deadman, standing_by
from hsadml_dist.stop.pace import Pace
from hsadml_dist.stop.peers import peers_expected
from hsadml_dist.stop.requests import Decision, Requests
from hsadml_dist.stop.signals import Notice, job_end_time
from hsadml_dist.stop.watchdog import Watch

STOP_AFTER = "HSADML_STOP_AFTER"
"""Environment variable: behave after this step as if told to stop; for trying out a resume."""

log = logging.getLogger(__name__)


def train(recipe: Recipe, path: Path, notice: Notice) -> ExitCode:
    """Train as one rank until the last step or a notice; go on from the run folder's newest good checkpoint.

    Args:
        recipe: All settings; relative paths are taken from the current directory.
        path: The run folder.
        notice: Listening already.

    Returns:
        DONE after the last step, STOPPED after a notice.

    Raises:
        HsadmlError: What a user can repair; see :mod:`hsadml_dist.errors`.
    """
    run, topology = RunFolder(path), place()
    notice.expect_end(job_end_time(), recipe.run.stop_lead_seconds)
    # Both fork processes, so no thread, group or device may exist before them.
    with standing_by(recipe.run.step_timeout_seconds is not None) as deadman:
        feed = open_feed(recipe, topology)
        try:
            threads = recipe.engine.threads or threads_for(topology)
            torch.set_num_threads(threads)
            facts = {"world_size": topology.world_size, "threads": threads, "total_steps": feed.total_steps}
            with peers_expected(run, None, lambda: "while the ranks met"):
                entry = enter(run, topology, facts, recipe.run.timeout_seconds, lambda: notice.received)
            open_log(entry.attempt, topology.rank)
            code = _attempt(recipe, run, feed, entry, notice, deadman)
            with peers_expected(run, entry.attempt, lambda: "at the end"):
                entry.comm.close()
            return code
        finally:
            feed.loader.close()


def _attempt(
    recipe: Recipe, run: RunFolder, feed: Feed, entry: Entry, notice: Notice, deadman: Deadman | None
) -> ExitCode:
    """Do this attempt's share of the training; whatever ends it is recorded."""
    watch = Watch(entry, recipe.run, deadman)
    records = open_records(entry, recipe.run.tensorboard)
    records.event("started", 0, world_size=entry.comm.topology.world_size, threads_at_fork=feed.loader.threads_at_fork)
    try:
        with peers_expected(run, entry.attempt, lambda: watch.place, watch.let_report):
            _refuse_if_stuck(run, entry)
            _compare_code(recipe, run, entry, records)
            choice = choose_checkpoint(run, entry.comm)
            network = initial_network(recipe, fresh=choice.name is None)
            _tell_of(network, records)
            return _build(recipe, run, feed, entry, notice, records, watch, network).go_on_from(choice)
    except HsadmlError as fault:
        with contextlib.suppress(RunError):  # a full disk must not hide why the run ends
            records.event("failed", 0, reason=str(fault), exit_code=int(fault.exit_code))
        raise
    finally:
        watch.close()
        records.close()


def _build(
    recipe: Recipe,
    run: RunFolder,
    feed: Feed,
    entry: Entry,
    notice: Notice,
    records: Records,
    watch: Watch,
    network: EmbeddingNet,
) -> Training:
    """Put an attempt's parts together."""
    learner = build_learner(recipe, network, len(feed.index.classes), entry.comm, feed.total_steps)
    requests = Requests(run, entry.attempt) if entry.comm.topology.is_first else None
    agreement = StopAgreement(entry.comm, notice, requests)

    def committed(name: CheckpointName) -> None:
        records.event("checkpoint", name.step, checkpoint=str(name))
        agreement.fulfilled(name.step)

    return Training(
        recipe=recipe,
        run=run,
        feed=feed,
        entry=entry,
        notice=notice,
        agreement=agreement,
        watch=watch,
        pace=Pace(learner.engine.model, entry.comm),
        learner=learner,
        resume=Resume(recipe=recipe, run=run, data_digest=feed.index.digest, learner=learner, records=records),
        saver=Saver(run, entry.attempt, entry.comm, recipe.checkpoint, committed),
        records=records,
    )


def _refuse_if_stuck(run: RunFolder, entry: Entry) -> None:
    """Rank 0 looks at the attempts before this one; all ranks hear what it says."""
    saved_by = {name.attempt for name in committed(run)}
    first = entry.comm.topology.is_first
    reason = entry.comm.share(why_no_further(run, entry.attempt, saved_by) if first else None)
    if reason is not None:
        raise RunError(reason)


def _compare_code(recipe: Recipe, run: RunFolder, entry: Entry, records: Records) -> None:
    """Keep the first start's code in the run folder; say of a later start how its code differs."""
    change = entry.comm.share(keep_code(run) if entry.comm.topology.is_first else None)
    if change is None:
        return
    if recipe.run.code_change == "refuse":
        raise ConfigError([Fault(where="recipe", key="run.code_change", problem=f"is 'refuse', and {change}")])
    log.warning("%s", change)
    records.event("code_changed", 0, before=change.before, now=change.now, files=change.files)


def _tell_of(network: EmbeddingNet, records: Records) -> None:
    """Say what was done to the published net, and what of it voids the promise across numbers of ranks."""
    for line in network.changes:
        log.info("%s", line)
    if network.changes:
        records.event("network", 0, changes=list(network.changes))
    layers = rank_dependent_layers(network)
    if layers:
        text = "%d layers (%s, ...) depend on how a batch is cut: results hold for this number of ranks only"
        log.warning(text, len(layers), layers[0])


@dataclass(frozen=True, kw_only=True)
class Training:
    """One attempt's parts, and the named steps that they go through."""

    recipe: Recipe
    run: RunFolder
    feed: Feed
    entry: Entry
    notice: Notice
    agreement: StopAgreement
    watch: Watch
    pace: Pace
    learner: Learner
    resume: Resume
    saver: Saver
    records: Records

    def go_on_from(self, choice: Choice) -> ExitCode:
        """Load, train to the last step or a notice, save, judge."""
        collect_again()
        done = self.resume.go_on_from(choice)
        self._remember_parent(choice.name)
        try:
            reached = self._do_steps(done + 1)
        except NumericalError as fault:
            self._save_last(done, fault.step - 1)  # good weights: another policy may go on from them
            raise
        self._save_last(done, reached)
        if reached < self.feed.total_steps:
            self._record_stop(reached)
            return ExitCode.STOPPED
        self.watch.at(reached, "evaluate")
        if self.recipe.evaluation.at_end:
            judge_run(self.run.path, self.recipe, self.feed.index, self.learner, self.entry.comm)
        self.records.event("finished", reached)
        return ExitCode.DONE

    def _remember_parent(self, name: CheckpointName | None) -> None:
        """Fix what this attempt builds on; a later commit by an earlier attempt is in nobody's line."""
        if self.entry.comm.topology.is_first:
            text = json.dumps({"checkpoint": None if name is None else str(name)})
            replace_text(self.entry.attempt.parent, text + "\n")

    def _do_steps(self, first: int) -> int:
        """Do steps from ``first`` on; return the last one done."""
        total = self.feed.total_steps
        stop_after = int(os.environ.get(STOP_AFTER, "0"))
        self.records.begin(first - 1, total)
        self.feed.loader.start(first, total)
        for step in range(first, total + 1):
            decision = self.take_step(step)
            if decision is Decision.STOP:
                return step - 1
            if step == stop_after:
                self.notice.deliver("requested")
            if step < total and (decision is Decision.SAVE or step % self.recipe.checkpoint.every == 0):
                self.watch.at(step, "save")
                self.saver.begin(self._state(step))
        return total

    def _save_last(self, done: int, reached: int) -> None:
        self.watch.at(reached, "save")
        self.saver.finish()
        if reached > max(done, self.saver.newest):
            self.saver.save(self._state(reached))

    def take_step(self, step: int) -> Decision:
        """Fetch a batch, decide with the other ranks whether to go on, and if so do the step and record it."""
        self.watch.at(step, "data")
        began = time.perf_counter()
        batch = self.feed.loader.next(lambda: self.notice.received)
        waited = time.perf_counter() - began
        # A save that failed stops all ranks alike: each of them then learns of it where it waits for the save.
        ready = batch is not None and not self.saver.failed
        self.watch.at(step, "vote")
        decision = self.agreement.decide(step, has_batch=ready, seconds=waited + self.pace.own_seconds())
        if decision is Decision.STOP or batch is None:
            return Decision.STOP
        self.watch.at(step, "step")
        self._name_stragglers(step - 1)
        report = self.learner.step(step, batch)
        self._record(step, batch, report, time.perf_counter() - began, waited)
        return decision

    def _name_stragglers(self, step: int) -> None:
        for slow in self.pace.compare(self.agreement.seconds):
            log.warning("%s", slow)
            self.records.event("straggler", step, **asdict(slow))

    def _record(self, step: int, batch: Batch, report: StepReport, seconds: float, waited: float) -> None:
        epoch = self.feed.order.epoch_of(step)
        row = StepRow(
            step=step,
            attempt=self.entry.attempt.number,
            epoch=epoch,
            loss=report.loss,
            lr=report.lr,
            grad_norm=report.grad_norm,
            samples=self.recipe.train.global_batch,
            step_seconds=seconds,
            data_wait_seconds=waited,
        )
        self.records.step(row)
        if report.skipped is not None:
            self._record_skip(step, report.skipped)
        if self.recipe.run.ledger:
            keys = [key for part in self.entry.comm.gather(batch.keys) for key in part]
            self.records.samples(step, epoch, keys)

    def _record_skip(self, step: int, finding: Finding) -> None:
        log.warning("skipped: %s", finding)
        suspects = [{"key": key, "what": what} for key, what in finding.suspects]
        self.records.event("skipped", step, reason=str(finding), suspects=suspects, keys=finding.keys)

    def _state(self, step: int) -> TrainingState:
        return TrainingState(groups=self.learner.state(), progress=self._progress(step), rows=self.learner.head.rows)

    def _progress(self, step: int) -> Progress:
        return Progress(
            step=step,
            consumed=step * self.recipe.train.global_batch,
            seed=self.recipe.train.seed,
            fingerprint=self.recipe.fingerprint(),
            data_digest=self.feed.index.digest,
            world_size=self.entry.comm.topology.world_size,
            skipped=self.learner.guard.in_a_row,
        )

    def _record_stop(self, step: int) -> None:
        noticed = self.entry.comm.gather(self.agreement.told)
        reasons = [f"rank {rank}: {name}" for rank, name in enumerate(noticed) if name]
        self.records.event("signal", step, noticed=reasons)
        self.records.event("stopped", step)
        self.agreement.fulfilled(step)
