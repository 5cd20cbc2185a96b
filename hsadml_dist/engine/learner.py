"""The learner: engine and head behind one training step, and its construction from a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from hsadml_dist.config import Recipe
from hsadml_dist.config.deepspeed_options import build_deepspeed_options
from hsadml_dist.data.batch import Batch
from hsadml_dist.data.order import step_seed
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.base import Engine
from hsadml_dist.engine.ddp import DdpEngine, DdpOptions
from hsadml_dist.engine.guard import Guard, NonFiniteStep, check_labels, rollback_and_diagnose
from hsadml_dist.engine.head import Head
from hsadml_dist.engine.selfcheck import check_gradients, reference_gradients
from hsadml_dist.engine.zero import DeepSpeedEngine
from hsadml_dist.losses.centres import Centres, resolve_layout
from hsadml_dist.losses.distributed_loss import DistributedLoss, LossCompute
from hsadml_dist.model_factory import build_margin_loss, build_network
from hsadml_dist.models.activations import checkpoint_activations
from hsadml_dist.models.batch_norm import check_sync_batch_norm
from hsadml_dist.models.layer_depth import layer_depths
from hsadml_dist.models.network import WEIGHT_DTYPES, EmbeddingNet, prepare_model
from hsadml_dist.optim import build_optimizer, layer_scales, learning_rate


def build_engine(
    recipe: Recipe, model: nn.Module, comm: Comm, example: torch.Tensor, bare: Callable[[], nn.Module]
) -> Engine:
    """Put the network into the recipe's engine, with the recipe's optimiser.

    Args:
        recipe: All settings.
        model: The network, on its device and in its dtype.
        comm: The ranks.
        example: An input (1, C, H, W) of zeros.
        bare: Builds the same network anew; its weights do not matter.

    Raises:
        ConfigError: The engine is not installed, or its own settings do not fit the recipe.
    """
    settings = recipe.engine
    if settings.name == "deepspeed":
        # Flat partitions know no other layout; images keep theirs, and the convolutions take it from them.
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's stubs
    scales = layer_scales(model, layer_depths(model), recipe.optim.layer_decay)
    optimizer = build_optimizer(model.parameters(), recipe.optim, decay=True, lr_scales=scales)
    if settings.name == "deepspeed":
        own = build_deepspeed_options(recipe, comm.topology.world_size)
        return DeepSpeedEngine(model, optimizer, comm, settings.precision, own, bare, recipe.optim.ema_decay)
    options = DdpOptions(
        static_graph=settings.static_graph, compiled=settings.compile, ema_decay=recipe.optim.ema_decay
    )
    return DdpEngine(model, optimizer, comm, settings.precision, settings.clip_norm, example, options)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What is recorded of a step.

    Attributes:
        loss: Mean loss of the global batch.
        lr: Learning rate of the backbone.
        grad_norm: Norm of the backbone's gradient before clipping.
        skipped: What was not finite, if the step therefore changed nothing.
    """

    loss: float
    lr: float
    grad_norm: float
    skipped: NonFiniteStep | None = None


class Learner:
    """Trains backbone and centres on a rank's batches.

    Attributes:
        engine: The backbone.
        head: The centres.
        guard: Keeps what is not finite out of both.
    """

    def __init__(self, recipe: Recipe, engine: Engine, head: Head, comm: Comm, total_steps: int) -> None:
        self.engine, self.head = engine, head
        self.guard = Guard(recipe.train.on_nonfinite, recipe.train.skip_limit)
        self._recipe, self._comm, self._total = recipe, comm, total_steps

    def step(self, step: int, batch: Batch) -> StepReport:
        """Do step ``step`` (from 1) on this rank's part of its batch; all of it or, where not finite, nothing.

        Raises:
            DataError: A label that is no class.
            NumericalError: Loss or gradient is not finite, and the recipe does not let the step be skipped.
        """
        check_labels(batch, self.head.classes)
        parts = self._on_device(batch).microbatches(self._recipe.engine.accumulate)
        torch.manual_seed(step_seed(self._recipe.train.seed, step, self._comm.topology.rank))

        def loss_fn(emb: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return self.head.loss(emb, label, step=step, count=self._recipe.train.global_batch)

        self.head.clear()
        outcome = self.engine.backward(parts, loss_fn)
        mean, head_norm = self.head.average(outcome.loss), self.head.norm()
        lr = learning_rate(self._recipe.optim, step, self._total)
        report = StepReport(loss=float(mean), lr=lr, grad_norm=float(outcome.grad_norm))
        # All three are alike on all ranks, so that all decide alike without asking.
        if all(map(math.isfinite, (report.loss, report.grad_norm, float(head_norm)))):
            self.engine.apply(lr)
            self.head.apply(lr * self._recipe.optim.head_lr_factor, head_norm)
            self.guard.passed()
            return report
        finding = rollback_and_diagnose(step, report.loss, self.engine, self.head, parts, loss_fn, self._comm)
        self.guard.skipped(finding)
        return replace(report, skipped=finding)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return all groups of tensors by name."""
        return self.engine.state() | self.head.state()

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave."""
        self.engine.load(groups)
        self.head.load(groups)

    def _on_device(self, batch: Batch) -> Batch:
        dtype = WEIGHT_DTYPES[self._recipe.engine.precision]
        image = batch.image.to(self._comm.device, dtype, memory_format=torch.channels_last, non_blocking=True)
        return replace(batch, image=image, label=batch.label.to(self._comm.device, non_blocking=True))


def build_learner(recipe: Recipe, network: EmbeddingNet, classes: int, comm: Comm, total_steps: int) -> Learner:
    """Return the learner of a fresh training.

    Raises:
        ConfigError: The loss cannot have this margin, or the engine cannot train this network here.
        EngineError: The engine's gradients are not those of the global mean.
    """
    settings = recipe.engine
    check_sync_batch_norm(network, comm.device, comm.topology.world_size)
    if settings.activation_checkpointing:
        checkpoint_activations(network)
    model = prepare_model(network, comm.device, settings.precision)
    size = recipe.data.image_size
    example = torch.zeros(1, 1, size, size, device=comm.device, dtype=WEIGHT_DTYPES[settings.precision])
    margin_loss, dim = build_margin_loss(recipe.loss), recipe.model.embedding_dim
    apart = comm.new_train_group()  # the loss's messages cross those of the engine's gradients
    rule = reference_gradients(model, settings.precision, margin_loss, dim, example, apart)
    engine = build_engine(
        recipe, model, comm, example, lambda: prepare_model(build_network(recipe), comm.device, "fp32")
    )
    head = _build_head(recipe, classes, apart)
    check_gradients(engine, rule, head.loss.layout, apart)
    return Learner(recipe, engine, head, comm, total_steps)


def _build_head(recipe: Recipe, classes: int, comm: Comm) -> Head:
    loss = _build_loss(recipe, classes, comm)
    optimizer = build_optimizer(loss.parameters(), recipe.optim, decay=False)
    return Head(loss, optimizer, comm, recipe.engine.clip_norm, recipe.loss.energy)


def _build_loss(recipe: Recipe, classes: int, comm: Comm) -> DistributedLoss:
    settings, place = recipe.loss, comm.topology
    layout = resolve_layout(
        settings.layout, classes=classes, global_batch=recipe.train.global_batch, world_size=place.world_size
    )
    rows = place.rank_range(classes) if layout == "sharded" else None
    centres = Centres(classes, recipe.model.embedding_dim, recipe.train.seed, rows)
    computing = LossCompute(
        backward=settings.backward,
        memory_mib=settings.memory_mib,
        sample_rate=settings.sample_rate,
        seed=recipe.train.seed,
    )
    loss = DistributedLoss(centres, build_margin_loss(settings), comm, layout, computing)
    return loss.placed(WEIGHT_DTYPES[recipe.engine.precision])
