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

from hsadml_dist.checkpoint.background import CheckpointSaver
from hsadml_dist.checkpoint.layout import CheckpointName, TrainingProgress, list_checkpoints
from hsadml_dist.checkpoint.load import CheckpointChoice, choose_checkpoint
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.config import Recipe
from hsadml_dist.data.batch import Batch
from hsadml_dist.data.loader import TrainData, build_train_data
from hsadml_dist.distributed.topology import cpu_threads_for_rank, topology_from_environ
from hsadml_dist.engine.guard import NonFiniteStep
from hsadml_dist.engine.learner import Learner, StepReport, build_learner
from hsadml_dist.errors import ConfigError, ExitCode, Fault, HsadmlError, NumericalError, RunError
from hsadml_dist.evaluation.evaluate import evaluate_training
from hsadml_dist.health.external_watchdog import ExternalWatchdog, open_external_watchdog
from hsadml_dist.health.hang_report import raise_on_lost_peer
from hsadml_dist.health.stragglers import StragglerMonitor
from hsadml_dist.health.watchdog import HealthMonitor
from hsadml_dist.models.network import EmbeddingNet, rank_dependent_layers
from hsadml_dist.preemption.agreement import StopAgreement
from hsadml_dist.preemption.requests import RequestFiles, StepDecision
from hsadml_dist.preemption.signals import STOP_AFTER, StopSignal, job_end_time
from hsadml_dist.process import resume_gc
from hsadml_dist.resume import Resume, initial_network
from hsadml_dist.run.attempts import crash_loop_reason
from hsadml_dist.run.code_snapshot import save_code_snapshot
from hsadml_dist.run.folder import RunFolder, replace_text
from hsadml_dist.run.history import StopReason
from hsadml_dist.run.rank_log import configure_rank_logging
from hsadml_dist.run.rendezvous import RankContext, join_run
from hsadml_dist.run.trackers import MetricsRow, Recorder, open_recorder

log = logging.getLogger(__name__)


def train(recipe: Recipe, path: Path, notice: StopSignal) -> ExitCode:
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
    run, topology = RunFolder(path), topology_from_environ()
    notice.set_deadline(job_end_time(), recipe.run.stop_lead_seconds)
    # Both fork processes, so no thread, group or device may exist before them.
    with open_external_watchdog(recipe.run.step_timeout_seconds is not None) as external_watchdog:
        train_data = build_train_data(recipe, topology)
        try:
            threads = recipe.engine.threads or cpu_threads_for_rank(topology)
            torch.set_num_threads(threads)
            facts = {"world_size": topology.world_size, "threads": threads, "total_steps": train_data.total_steps}
            with raise_on_lost_peer(run, None, lambda: "while the ranks met"):
                context = join_run(run, topology, facts, recipe.run.timeout_seconds, lambda: notice.is_set)
            configure_rank_logging(context.attempt, topology.rank)
            code = _attempt(recipe, run, train_data, context, notice, external_watchdog)
            with raise_on_lost_peer(run, context.attempt, lambda: "at the end"):
                context.comm.close()
            return code
        finally:
            train_data.loader.close()


def _attempt(
    recipe: Recipe,
    run: RunFolder,
    train_data: TrainData,
    context: RankContext,
    notice: StopSignal,
    external_watchdog: ExternalWatchdog | None,
) -> ExitCode:
    """Do this attempt's share of the training; whatever ends it is recorded."""
    watch = HealthMonitor(context, recipe.run, external_watchdog)
    records = open_recorder(context, recipe.run.tensorboard)
    records.event(
        "started", 0, world_size=context.comm.topology.world_size, threads_at_fork=train_data.loader.threads_at_fork
    )
    try:
        with raise_on_lost_peer(run, context.attempt, lambda: watch.position, watch.wait_for_report):
            _refuse_if_stuck(run, context)
            _compare_code(recipe, run, context, records)
            choice = choose_checkpoint(run, context.comm)
            network = initial_network(recipe, fresh=choice.name is None)
            _tell_of(network, records)
            return _build(recipe, run, train_data, context, notice, records, watch, network).go_on_from(choice)
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
    train_data: TrainData,
    context: RankContext,
    notice: StopSignal,
    records: Recorder,
    watch: HealthMonitor,
    network: EmbeddingNet,
) -> Trainer:
    """Put an attempt's parts together."""
    learner = build_learner(recipe, network, len(train_data.index.classes), context.comm, train_data.total_steps)
    requests = RequestFiles(run, context.attempt) if context.comm.topology.is_rank_zero else None
    agreement = StopAgreement(context.comm, notice, requests)

    def record_checkpoint(name: CheckpointName) -> None:
        records.event("checkpoint", name.step, checkpoint=str(name))
        agreement.mark_saved(name.step)

    return Trainer(
        recipe=recipe,
        run=run,
        train_data=train_data,
        context=context,
        notice=notice,
        agreement=agreement,
        watch=watch,
        pace=StragglerMonitor(learner.engine.model, context.comm),
        learner=learner,
        resume=Resume(recipe=recipe, run=run, data_digest=train_data.index.digest, learner=learner, records=records),
        saver=CheckpointSaver(run, context.attempt, context.comm, recipe.checkpoint, record_checkpoint),
        records=records,
    )


def _refuse_if_stuck(run: RunFolder, context: RankContext) -> None:
    """Rank 0 looks at the attempts before this one; all ranks hear what it says."""
    saved_by = {name.attempt for name in list_checkpoints(run)}
    first = context.comm.topology.is_rank_zero
    reason = context.comm.broadcast_object(crash_loop_reason(run, context.attempt, saved_by) if first else None)
    if reason is not None:
        raise RunError(reason)


def _compare_code(recipe: Recipe, run: RunFolder, context: RankContext, records: Recorder) -> None:
    """Keep the first start's code in the run folder; say of a later start how its code differs."""
    change = context.comm.broadcast_object(save_code_snapshot(run) if context.comm.topology.is_rank_zero else None)
    if change is None:
        return
    if recipe.run.code_change == "refuse":
        raise ConfigError([Fault(where="recipe", key="run.code_change", problem=f"is 'refuse', and {change}")])
    log.warning("%s", change)
    records.event("code_changed", 0, before=change.before, now=change.now, files=change.files)


def _tell_of(network: EmbeddingNet, records: Recorder) -> None:
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
class Trainer:
    """One attempt's parts, and the named steps that they go through."""

    recipe: Recipe
    run: RunFolder
    train_data: TrainData
    context: RankContext
    notice: StopSignal
    agreement: StopAgreement
    watch: HealthMonitor
    pace: StragglerMonitor
    learner: Learner
    resume: Resume
    saver: CheckpointSaver
    records: Recorder

    def go_on_from(self, choice: CheckpointChoice) -> ExitCode:
        """Load, train to the last step or a notice, save, judge."""
        resume_gc()
        done = self.resume.go_on_from(choice)
        self._remember_parent(choice.name)
        try:
            reached = self._do_steps(done + 1)
        except NumericalError as fault:
            self._save_last(done, fault.step - 1)  # good weights: another policy may go on from them
            raise
        self._save_last(done, reached)
        if reached < self.train_data.total_steps:
            self._record_stop(reached)
            return ExitCode.STOPPED
        self.watch.enter_stage(reached, "evaluate")
        if self.recipe.evaluation.at_end:
            self._evaluate()
        self.records.event("finished", reached)
        return ExitCode.SUCCESS

    def _evaluate(self) -> None:
        model, centre_CD = self.learner.engine.evaluation_model(), self.learner.head.gather_centres()
        evaluation = evaluate_training(
            self.run.path, self.recipe, self.train_data.index, model, centre_CD, self.context.comm
        )
        if self.context.comm.topology.is_rank_zero:
            # Imported by the one rank that draws: matplotlib takes a second and 60 MB.
            from hsadml_dist.report.evaluation_report import write_evaluation_report

            write_evaluation_report(self.run.path, evaluation)

    def _remember_parent(self, name: CheckpointName | None) -> None:
        """Fix what this attempt builds on; a later commit by an earlier attempt is in nobody's line."""
        if self.context.comm.topology.is_rank_zero:
            text = json.dumps({"checkpoint": None if name is None else str(name)})
            replace_text(self.context.attempt.parent, text + "\n")

    def _do_steps(self, first: int) -> int:
        """Do steps from ``first`` on; return the last one done."""
        total = self.train_data.total_steps
        stop_after = int(os.environ.get(STOP_AFTER, "0"))
        self.records.begin(first - 1, total)
        self.train_data.loader.start(first, total)
        for step in range(first, total + 1):
            decision = self.train_step(step)
            if decision is StepDecision.STOP:
                return step - 1
            if step == stop_after:
                self.notice.trigger(StopReason.REQUESTED)
            if step < total and (decision is StepDecision.SAVE or step % self.recipe.checkpoint.every == 0):
                self.watch.enter_stage(step, "save")
                self.saver.save_async(self._state(step))
        return total

    def _save_last(self, done: int, reached: int) -> None:
        self.watch.enter_stage(reached, "save")
        self.saver.wait()
        if reached > max(done, self.saver.last_step):
            self.saver.save(self._state(reached))

    def train_step(self, step: int) -> StepDecision:
        """Fetch a batch, decide with the other ranks whether to go on, and if so do the step and record it."""
        self.watch.enter_stage(step, "data")
        began = time.perf_counter()
        batch = self.train_data.loader.next(lambda: self.notice.is_set)
        waited = time.perf_counter() - began
        # A save that failed stops all ranks alike: each of them then learns of it where it waits for the save.
        ready = batch is not None and not self.saver.failed
        self.watch.enter_stage(step, "vote")
        decision = self.agreement.decide(step, has_batch=ready, seconds=waited + self.pace.compute_seconds())
        if decision is StepDecision.STOP or batch is None:
            return StepDecision.STOP
        self.watch.enter_stage(step, "step")
        self._name_stragglers(step - 1)
        report = self.learner.step(step, batch)
        self._record(step, batch, report, time.perf_counter() - began, waited)
        return decision

    def _name_stragglers(self, step: int) -> None:
        for slow in self.pace.find_stragglers(self.agreement.seconds):
            log.warning("%s", slow)
            self.records.event("straggler", step, **asdict(slow))

    def _record(self, step: int, batch: Batch, report: StepReport, seconds: float, waited: float) -> None:
        epoch = self.train_data.order.epoch_of(step)
        row = MetricsRow(
            step=step,
            attempt=self.context.attempt.number,
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
            keys = [key for part in self.context.comm.all_gather_object(batch.keys) for key in part]
            self.records.samples(step, epoch, keys)

    def _record_skip(self, step: int, finding: NonFiniteStep) -> None:
        log.warning("skipped: %s", finding)
        suspects = [{"key": key, "what": what} for key, what in finding.suspects]
        self.records.event("skipped", step, reason=str(finding), suspects=suspects, keys=finding.keys)

    def _state(self, step: int) -> TrainingState:
        return TrainingState(groups=self.learner.state(), progress=self._progress(step), rows=self.learner.head.rows)

    def _progress(self, step: int) -> TrainingProgress:
        return TrainingProgress(
            step=step,
            consumed=step * self.recipe.train.global_batch,
            seed=self.recipe.train.seed,
            fingerprint=self.recipe.fingerprint(),
            data_digest=self.train_data.index.digest,
            world_size=self.context.comm.topology.world_size,
            skipped=self.learner.guard.consecutive_skips,
        )

    def _record_stop(self, step: int) -> None:
        self.records.stopped(step, self.context.comm.all_gather_object(self.agreement.stop_reason))
        self.agreement.mark_saved(step)
