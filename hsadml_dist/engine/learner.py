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
from hsadml_dist.engine.base import Engine, Groups
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


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Metrics of a step.

    Attributes:
        loss: Mean loss of the global batch.
        lr: Learning rate of the backbone.
        grad_norm: Norm of the gradient of the backbone before clipping.
        skipped: Diagnosis of NaN or Inf, if the step was therefore skipped.
    """

    loss: float
    lr: float
    grad_norm: float
    skipped: NonFiniteStep | None = None


class Learner:
    """Trains backbone and centres on the batches of a rank.

    Attributes:
        engine: Trains the backbone.
        head: Trains the centres.
        guard: Decides whether to continue after a step with NaN or Inf.
    """

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        head: Head,
        comm: Comm,
        total_steps: int,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self.engine, self.head = engine, head
        self.guard = Guard(recipe.train.on_nonfinite, recipe.train.skip_limit)
        self._train, self._optim, self._engine_config = recipe.train, recipe.optim, recipe.engine
        self._comm, self._total_steps, self._memory_format = comm, total_steps, memory_format

    def step(self, step: int, batch: Batch) -> StepReport:
        """Train on the local part of the batch of ``step`` (from 1), or skip the step if it has NaN or Inf.

        Raises:
            DataError: A label is not a class.
            NumericalError: Loss or gradient is not finite, and the recipe does not allow to skip the step.
        """
        check_labels(batch, self.head.classes)
        parts = self._to_device(batch).microbatches(self._engine_config.accumulate)
        torch.manual_seed(step_seed(self._train.seed, step, self._comm.topology.rank))

        def loss_fn(emb: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return self.head.loss(emb, label, step=step, count=self._train.global_batch)

        self.head.zero_grad()
        result = self.engine.backward(parts, loss_fn)
        mean, head_norm = self.head.average_gradients(result.loss), self.head.grad_norm()
        lr = learning_rate(self._optim, step, self._total_steps)
        # Equal on all ranks, so that all of them decide alike without communication.
        figures = _read_scalars(mean, result.grad_norm, head_norm)
        report = StepReport(loss=figures[0], lr=lr, grad_norm=figures[1])
        if all(map(math.isfinite, figures)):
            self.engine.apply(lr)
            self.head.apply(lr * self._optim.head_lr_factor, head_norm)
            self.guard.on_applied()
            return report
        diagnosis = rollback_and_diagnose(step, report.loss, self.engine, self.head, parts, loss_fn, self._comm)
        self.guard.on_skipped(diagnosis)
        return replace(report, skipped=diagnosis)

    def state(self) -> Groups:
        """Return all groups of tensors by name. Collective: every rank must call it."""
        return self.engine.state() | self.head.state()

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Load the result of :meth:`state`. Collective: every rank must call it."""
        self.engine.load(groups)
        self.head.load(groups)

    def _to_device(self, batch: Batch) -> Batch:
        dtype, device = WEIGHT_DTYPES[self._engine_config.precision], self._comm.device
        image = batch.image.to(device, dtype, memory_format=self._memory_format, non_blocking=True)
        return replace(batch, image=image, label=batch.label.to(device, non_blocking=True))


def _read_scalars(*scalars: torch.Tensor) -> list[float]:
    """Return the values of tensors of one element, of any device and dtype, with one wait for the GPU."""
    device = scalars[0].device
    return torch.cat([scalar.detach().reshape(1).to(device, torch.float64) for scalar in scalars]).tolist()


def build_learner(recipe: Recipe, network: EmbeddingNet, classes: int, comm: Comm, total_steps: int) -> Learner:
    """Return the learner of a new training. Collective: every rank must call it.

    Args:
        recipe: All settings.
        network: The network on the CPU; it is moved to the device of the ranks.
        classes: Number of classes.
        comm: The ranks.
        total_steps: Number of steps of the training.

    Raises:
        ConfigError: The loss does not accept its margin, or the engine cannot train this network here.
        EngineError: The gradients of the engine are not those of the global mean.
    """
    precision = recipe.engine.precision
    check_sync_batch_norm(network, comm.device, comm.topology.world_size)
    if recipe.engine.activation_checkpointing:
        checkpoint_activations(network)
    model, example = prepare_model(network, comm.device, precision), network.spec.zeros(comm.device, precision)
    # A group of its own, because the messages of the loss overlap with those of the gradients.
    loss_comm = comm.new_train_group()
    margin_loss = build_margin_loss(recipe.loss)
    reference = reference_gradients(model, precision, margin_loss, recipe.model.embedding_dim, example, loss_comm)
    engine = build_engine(
        recipe, model, comm, example, lambda: prepare_model(build_network(recipe), comm.device, "fp32")
    )
    head = _build_head(recipe, classes, loss_comm)
    check_gradients(engine, reference, head.loss.layout, loss_comm)
    return Learner(recipe, engine, head, comm, total_steps, network.spec.memory_format)


def build_engine(
    recipe: Recipe, model: nn.Module, comm: Comm, example: torch.Tensor, build_copy: Callable[[], nn.Module]
) -> Engine:
    """Return the engine of a recipe with its optimizer.

    Args:
        recipe: All settings.
        model: The network, on its device and in its dtype.
        comm: The ranks.
        example: An input (1, C, H, W) of zeros.
        build_copy: Builds the same network again; its weights do not matter.

    Raises:
        ConfigError: The engine is not installed, or its own settings contradict the recipe.
    """
    config, optim = recipe.engine, recipe.optim
    if config.name == "deepspeed":
        # Flat partitions need contiguous weights; images keep channels last, which convolutions then follow.
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's stubs
    scales = layer_scales(model, layer_depths(model), optim.layer_decay)
    optimizer = build_optimizer(model.parameters(), optim, decay=True, lr_scales=scales)
    if config.name == "deepspeed":
        options = build_deepspeed_options(config, recipe.train.global_batch, comm.topology.world_size)
        return DeepSpeedEngine(model, optimizer, comm, config.precision, options, build_copy, optim.ema_decay)
    ddp_options = DdpOptions(
        clip_norm=config.clip_norm,
        static_graph=config.static_graph,
        compiled=config.compile,
        ema_decay=optim.ema_decay,
    )
    return DdpEngine(model, optimizer, comm, config.precision, example, ddp_options)


def _build_head(recipe: Recipe, classes: int, comm: Comm) -> Head:
    config, topology, seed = recipe.loss, comm.topology, recipe.train.seed
    layout = resolve_layout(
        config.layout, classes=classes, global_batch=recipe.train.global_batch, world_size=topology.world_size
    )
    rows = topology.rank_range(classes) if layout == "sharded" else None
    centres = Centres(classes, recipe.model.embedding_dim, seed, rows)
    compute = LossCompute(
        backward=config.backward, memory_mib=config.memory_mib, sample_rate=config.sample_rate, seed=seed
    )
    loss = DistributedLoss(centres, build_margin_loss(config), comm, layout, compute)
    loss.to_training_dtype(WEIGHT_DTYPES[recipe.engine.precision])
    optimizer = build_optimizer(loss.parameters(), recipe.optim, decay=False)
    return Head(loss, optimizer, comm, recipe.engine.clip_norm, config.energy)
