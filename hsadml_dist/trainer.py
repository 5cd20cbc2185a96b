"""Train a recipe as one rank: build all parts, resume, train the steps, save and evaluate."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hsadml_dist.addresses import display_address
from hsadml_dist.atomic import write_text
from hsadml_dist.checkpoint.background import CheckpointSaver
from hsadml_dist.checkpoint.layout import CheckpointName, TrainingProgress, list_checkpoints
from hsadml_dist.checkpoint.load import choose_checkpoint
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import RunConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.loader import TrainData, build_train_data
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.distributed.device import configure_kernels
from hsadml_dist.distributed.topology import Topology, cpu_threads_for_rank, topology_from_environ
from hsadml_dist.engine.guard import NonFiniteStep
from hsadml_dist.engine.learner import Learner, StepReport, build_learner
from hsadml_dist.errors import ConfigError, ExitCode, Fault, HsadmlError, NumericalError, RunError, TrainedDataError
from hsadml_dist.evaluation.evaluate import evaluate_training
from hsadml_dist.evaluation.trained_overlap import count_repeated_images
from hsadml_dist.evaluation.training_lineage import save_training_record
from hsadml_dist.health.external_watchdog import ExternalWatchdog, open_external_watchdog
from hsadml_dist.health.hang_report import raise_on_lost_peer
from hsadml_dist.health.stragglers import StragglerMonitor
from hsadml_dist.health.watchdog import HealthMonitor
from hsadml_dist.models.network import EmbeddingNet, rank_dependent_layers
from hsadml_dist.preemption.agreement import StopAgreement
from hsadml_dist.preemption.requests import RequestFiles, StepDecision
from hsadml_dist.preemption.signals import STOP_AFTER, StopSignal, job_end_time
from hsadml_dist.process import resume_gc
from hsadml_dist.resume import initial_network, resume_from
from hsadml_dist.run.attempts import crash_loop_reason
from hsadml_dist.run.code_snapshot import CodeChange, save_code_snapshot
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import StopReason
from hsadml_dist.run.rendezvous import RankContext, join_run
from hsadml_dist.run.trackers import MetricsRow, Recorder, configure_rank_logging, open_recorder

log = logging.getLogger(__name__)

MAX_LOGGED = 24
"""Classes that the log names."""


def train(recipe: Recipe, path: Path, signal: StopSignal) -> ExitCode:
    """Train as one rank until the last step or a stop request, from the newest valid checkpoint of the run folder.

    Args:
        recipe: All settings; relative paths refer to the current directory.
        path: The run folder.
        signal: Stop requests, already listening.

    Returns:
        SUCCESS after the last step, STOPPED after a stop request.

    Raises:
        HsadmlError: See :mod:`hsadml_dist.errors`.
    """
    run, topology = RunFolder(path), topology_from_environ()
    signal.set_deadline(job_end_time(), recipe.run.stop_lead_seconds)
    # Watchdog and loader fork processes, so no thread, process group or device may exist before them.
    with open_external_watchdog(recipe.run.step_timeout_seconds is not None) as external_watchdog:
        train_data = build_train_data(recipe.data, recipe.train, topology)
        with contextlib.closing(train_data.loader):
            context = _join(recipe, run, topology, train_data.total_steps, signal)
            with _open_session(recipe.run, run, context, signal, external_watchdog) as session:
                code = _train_attempt(recipe, train_data, session)
            with raise_on_lost_peer(run, context.attempt, lambda: "at the end"):
                context.comm.close()
            return code


def _train_attempt(recipe: Recipe, train_data: TrainData, session: Session) -> ExitCode:
    """Train in this attempt, step by step from what the previous attempts have reached."""
    threads = train_data.loader.threads_at_fork
    session.recorder.event("started", 0, world_size=session.comm.topology.world_size, threads_at_fork=threads)
    _check_crash_loop(session)
    _check_code(recipe.run, session)
    choice = choose_checkpoint(session.run, session.comm)
    network = initial_network(recipe, fresh=choice.name is None)
    _log_parts(recipe, train_data, network, session)
    learner = build_learner(recipe, network, len(train_data.index.classes), session.comm, train_data.total_steps)
    trainer = Trainer(recipe, train_data, learner, session)
    resume_gc()
    done = resume_from(choice, learner, recipe, train_data, session.run, session.recorder)
    if session.comm.topology.is_rank_zero:
        _record_training_data(session.run, recipe, train_data.index)
        # A later save of an earlier attempt is not part of this one.
        parent = json.dumps({"checkpoint": None if choice.name is None else str(choice.name)})
        write_text(session.context.attempt.parent, parent + "\n")
    return trainer.run(done)


@dataclass(frozen=True, kw_only=True)
class Session:
    """The parts of an attempt that do not depend on the network and the data."""

    run: RunFolder
    context: RankContext
    signal: StopSignal
    monitor: HealthMonitor
    recorder: Recorder

    @property
    def comm(self) -> Comm:
        """The ranks."""
        return self.context.comm


class Trainer:
    """Trains, records and saves the steps of an attempt."""

    def __init__(self, recipe: Recipe, train_data: TrainData, learner: Learner, session: Session) -> None:
        self._recipe, self._train_data, self._learner, self._session = recipe, train_data, learner, session
        self._comm, self._monitor, self._recorder = session.comm, session.monitor, session.recorder
        attempt = session.context.attempt
        requests = RequestFiles(session.run, attempt) if self._comm.topology.is_rank_zero else None
        self._agreement = StopAgreement(self._comm, session.signal, requests)
        self._stragglers = StragglerMonitor(learner.engine.model, self._comm)
        self._saver = CheckpointSaver(session.run, attempt, self._comm, recipe.checkpoint, self._on_checkpoint)

    def run(self, done: int) -> ExitCode:
        """Train from step ``done + 1`` to the last step or a stop request, save, and evaluate."""
        try:
            reached = self._train_steps(done + 1)
        except NumericalError as fault:
            self._save_last(done, fault.step - 1)  # these weights are good: a resume with another policy needs them
            raise
        self._save_last(done, reached)
        if reached < self._train_data.total_steps:
            reasons = self._comm.all_gather_json(self._agreement.stop_reason)
            self._recorder.stopped(reached, [None if reason is None else StopReason(reason) for reason in reasons])
            self._agreement.mark_saved(reached)
            return ExitCode.STOPPED
        self._monitor.enter_stage(reached, "evaluate")
        if self._recipe.evaluation.at_end:
            self._evaluate()
        self._recorder.event("finished", reached)
        return ExitCode.SUCCESS

    def _evaluate(self) -> None:
        """Evaluate the final weights and write the report."""
        run, learner = self._session.run.path, self._learner
        model, centre_CD = learner.engine.evaluation_model(), learner.head.gather_centres()
        index, bias = self._train_data.index, learner.head.bias
        try:
            evaluation = evaluate_training(run, self._recipe, index, model, centre_CD, self._comm, bias)
        except TrainedDataError as refusal:  # on every rank; the training itself is done and saved
            log.warning("%s", refusal)
            self._recorder.event("evaluation_refused", self._train_data.total_steps, reason=str(refusal))
            return
        if self._comm.topology.is_rank_zero:
            from hsadml_dist.report.run_report import write_evaluation_report  # matplotlib: seconds

            try:
                write_evaluation_report(run, evaluation)
            except Exception as fault:  # noqa: BLE001  the training is done and saved, whatever its pages stumble over
                reason = f"{type(fault).__name__}: {fault}"
                log.warning("the report cannot be drawn: %s; after a repair: hsadml evaluate %s", reason, run)
                self._recorder.event("report_failed", self._train_data.total_steps, reason=reason)
            result = evaluation.result
            log.info("nearest neighbour: %.2f %% of %d test slices", 100 * result.knn_accuracy, result.slices)

    def train_step(self, step: int) -> StepDecision:
        """Fetch a batch, agree with the other ranks whether to continue, and if so train and record the step."""
        self._monitor.enter_stage(step, "data")
        began = time.perf_counter()
        batch = self._train_data.loader.next(lambda: self._session.signal.is_set)
        waited = time.perf_counter() - began
        # A failed save stops all ranks at the same step; each of them then raises it where it waits for the save.
        ready = batch is not None and not self._saver.failed
        self._monitor.enter_stage(step, "vote")
        seconds = waited + self._stragglers.compute_seconds()
        decision = self._agreement.decide(step, has_batch=ready, seconds=seconds)
        if decision is StepDecision.STOP or batch is None:
            return StepDecision.STOP
        self._monitor.enter_stage(step, "step")
        self._record_stragglers(step - 1)
        report = self._learner.step(step, batch)
        self._record(step, batch, report, time.perf_counter() - began, waited)
        return decision

    def _train_steps(self, first: int) -> int:
        """Train the steps from ``first`` on; return the last one done."""
        total = self._train_data.total_steps
        stop_after = int(os.environ.get(STOP_AFTER, "0"))
        self._recorder.begin(first - 1, total)
        self._train_data.loader.start(first, total, self._comm.device)
        for step in range(first, total + 1):
            decision = self.train_step(step)
            if decision is StepDecision.STOP:
                return step - 1
            if step == stop_after:
                self._session.signal.trigger(StopReason.REQUESTED)
            if step < total and (decision is StepDecision.SAVE or step % self._recipe.checkpoint.every == 0):
                self._monitor.enter_stage(step, "save")
                self._saver.save_async(self._state(step))
        return total

    def _save_last(self, done: int, reached: int) -> None:
        self._monitor.enter_stage(reached, "save")
        self._saver.wait()
        if reached > max(done, self._saver.last_step):
            self._saver.save(self._state(reached))

    def _state(self, step: int) -> TrainingState:
        progress = TrainingProgress(
            step=step,
            consumed=step * self._recipe.train.global_batch,
            seed=self._recipe.train.seed,
            fingerprint=self._recipe.fingerprint(),
            data_digest=self._train_data.index.digest,
            world_size=self._comm.topology.world_size,
            skipped=self._learner.guard.consecutive_skips,
        )
        return TrainingState(groups=self._learner.state(), progress=progress, rows=self._learner.head.rows)

    def _on_checkpoint(self, name: CheckpointName) -> None:
        self._recorder.event("checkpoint", name.step, checkpoint=str(name))
        self._agreement.mark_saved(name.step)

    def _record(self, step: int, batch: Batch, report: StepReport, seconds: float, waited: float) -> None:
        epoch = self._train_data.order.epoch_of(step)
        row = MetricsRow(
            step=step,
            attempt=self._session.context.attempt.number,
            epoch=epoch,
            loss=report.loss,
            lr=report.lr,
            grad_norm=report.grad_norm,
            samples=self._recipe.train.global_batch,
            step_seconds=seconds,
            data_wait_seconds=waited,
        )
        self._recorder.step(row)
        if report.skipped is not None:
            self._record_skip(step, report.skipped)
        if self._recipe.run.ledger:
            keys = [key for part in self._comm.all_gather_json(batch.keys) for key in part]
            self._recorder.samples(step, epoch, keys)

    def _record_skip(self, step: int, diagnosis: NonFiniteStep) -> None:
        log.warning("skipped: %s", diagnosis)
        suspects = [{"key": key, "what": what} for key, what in diagnosis.suspects]
        self._recorder.event("skipped", step, reason=str(diagnosis), suspects=suspects, keys=diagnosis.keys)

    def _record_stragglers(self, step: int) -> None:
        for straggler in self._stragglers.find_stragglers(self._agreement.seconds):
            log.warning("%s", straggler)
            self._recorder.event("straggler", step, **asdict(straggler))


def _join(recipe: Recipe, run: RunFolder, topology: Topology, total_steps: int, signal: StopSignal) -> RankContext:
    """Join the other ranks in a new attempt; configure threads, GPU kernels and the log of this rank."""
    threads = recipe.engine.threads or cpu_threads_for_rank(topology)
    torch.set_num_threads(threads)
    facts = {"world_size": topology.world_size, "threads": threads, "total_steps": total_steps}
    with raise_on_lost_peer(run, None, lambda: "at the rendezvous"):
        context = join_run(run, topology, facts, recipe.run.timeout_seconds, lambda: signal.is_set)
    configure_kernels(context.comm.device, tf32=recipe.engine.tf32, deterministic=recipe.engine.deterministic)
    configure_rank_logging(context.attempt, topology.rank)
    return context


@contextlib.contextmanager
def _open_session(
    config: RunConfig,
    run: RunFolder,
    context: RankContext,
    signal: StopSignal,
    external_watchdog: ExternalWatchdog | None,
) -> Iterator[Session]:
    """Monitor and record an attempt; an error that ends it is recorded."""
    monitor = HealthMonitor(context, config, external_watchdog)
    recorder = open_recorder(context, config.tensorboard)
    try:
        with raise_on_lost_peer(run, context.attempt, lambda: monitor.position, monitor.wait_for_report):
            yield Session(run=run, context=context, signal=signal, monitor=monitor, recorder=recorder)
    except Exception as fault:
        is_known = isinstance(fault, HsadmlError)
        reason = str(fault) if is_known else f"{type(fault).__name__}: {fault}"
        code = fault.exit_code if isinstance(fault, HsadmlError) else ExitCode.INTERNAL_ERROR
        with contextlib.suppress(RunError):  # a full disk must not hide why the run ends
            recorder.event("failed", 0, reason=reason, exit_code=int(code))
        raise
    finally:
        monitor.close()
        recorder.close()


def _check_crash_loop(session: Session) -> None:
    """Raise on all ranks if the previous attempts ended without a new checkpoint."""
    reason = None
    if session.comm.topology.is_rank_zero:
        saved_by = {name.attempt for name in list_checkpoints(session.run)}
        reason = crash_loop_reason(session.run, session.context.attempt, saved_by)
    reason = session.comm.broadcast_json(reason)
    if reason is not None:
        raise RunError(reason)


def _check_code(config: RunConfig, session: Session) -> None:
    """Save the code in the run folder at the first start; at later starts, report or refuse changes of the code."""
    found = save_code_snapshot(session.run) if session.comm.topology.is_rank_zero else None
    sent = session.comm.broadcast_json(None if found is None else asdict(found))
    if sent is None:
        return
    change = CodeChange(**sent)
    if config.code_change == "refuse":
        raise ConfigError([Fault(where="recipe", key="run.code_change", problem=f"is 'refuse', and {change}")])
    log.warning("%s", change)
    session.recorder.event("code_changed", 0, before=change.before, now=change.now, files=change.files)


def _record_training_data(run: RunFolder, recipe: Recipe, index: ShardIndex) -> None:
    """Store what the run is trained on; warn now if its evaluation will be refused."""
    save_training_record(run, recipe, index)
    repeated = count_repeated_images(recipe, index)
    if repeated and recipe.evaluation.at_end and not recipe.evaluation.allow_trained:
        text = "data.fold: %d slices of test fold %d are in the training folds, too: the evaluation will be refused; %s"
        log.warning(text, repeated, recipe.data.fold, "evaluation.allow_trained=true allows it")


def _log_parts(recipe: Recipe, train_data: TrainData, network: EmbeddingNet, session: Session) -> None:
    """Report machine, data and network, changes of the published network, and layers that depend on the ranks."""
    topology, index = session.comm.topology, train_data.index
    place = f"{socket.gethostname()}, {session.comm.device}, {torch.get_num_threads()} CPU threads per rank"
    log.info("rank %d of %d on %s; torch %s", topology.rank, topology.world_size, place, torch.__version__)
    slices = f"{len(index.outside_folds(recipe.data.held_out_folds))} of {len(index.samples)} slices are trained on"
    held_out, classes = ", ".join(map(str, recipe.data.held_out_folds)), ", ".join(index.classes[:MAX_LOGGED])
    log.info("data: %s: %s, held-out folds %s", display_address(recipe.data.shards), slices, held_out)
    log.info("classes (%d): %s", len(index.classes), classes + ", ..." * (len(index.classes) > MAX_LOGGED))
    weights = sum(parameter.numel() for parameter in network.parameters())
    log.info("model: %s, %s weights, embedding of %d", recipe.model.name, f"{weights:,}", recipe.model.embedding_dim)
    precision = f"{recipe.engine.name} in {recipe.engine.precision}"
    log.info("loss: %s; engine: %s; %d steps", recipe.loss.name, precision, train_data.total_steps)
    for line in network.changes:
        log.info("%s", line)
    if network.changes:
        session.recorder.event("network", 0, changes=list(network.changes))
    layers = rank_dependent_layers(network)
    if layers:
        text = "%d layers (%s, ...) depend on how a batch is split: results hold for this number of ranks only"
        log.warning(text, len(layers), layers[0])
