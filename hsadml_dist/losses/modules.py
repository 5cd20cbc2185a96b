"""Margin losses as ordinary modules, for any training loop: ``ArcFace(num_classes=3, embedding_dim=64)(emb, labels)``.

With several ranks the modules use an existing process group; they never initialise one. After the usual averaging of
gradients over the ranks, all gradients are those of one rank with the whole batch, whether the module is inside or
outside of the model that DistributedDataParallel wraps, and even if ranks hold different numbers of samples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hsadml_dist.distributed.comm import SoloComm, comm_from_process_group
from hsadml_dist.errors import UsageError
from hsadml_dist.loss_rules import LossName
from hsadml_dist.losses.centres import Centres, Layout
from hsadml_dist.losses.distributed_loss import DistributedLoss, LossCompute
from hsadml_dist.losses.margins import MarginSettings, build_margin


class MarginLossModule(nn.Module):
    """Base class of the margin losses; use one of its subclasses.

    The class centres are parameters of the module, so give ``module.parameters()`` to an optimizer. The number of
    training steps, on which the annealing of SphereFace depends, is a buffer and hence part of the state dict.

    Attributes:
        name: Name of the loss in recipes.
        loss: The loss, with the class centres and further parameters and statistics.
        step: Number of forward passes in training mode, int64.
    """

    name: ClassVar[LossName]
    step: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float | None = None,
        scale: float | None = None,
        settings: MarginSettings | None = None,
        layout: Layout = "replicated",
        process_group: dist.ProcessGroup | None = None,
        compute: LossCompute | None = None,
        seed: int = 0,
    ) -> None:
        """Create the class centres.

        Args:
            num_classes: C, the number of classes.
            embedding_dim: D, the number of components of an embedding.
            margin: m; None means the default of the paper.
            scale: s; None means the default of the paper.
            settings: Further settings of the loss; ``margin`` and ``scale`` have precedence.
            layout: replicated: every rank holds all centres. sharded: each rank holds a contiguous part of the classes;
                torch.distributed must then be initialised before, and the model that contains the module must be
                passed to :func:`exclude_sharded_centres` before DistributedDataParallel wraps it.
            process_group: The ranks; None means the default group if torch.distributed is initialised at the first
                forward pass, otherwise a single rank. A module with an explicit group cannot be copied or pickled.
            compute: How to compute the loss.
            seed: Seed of the initial centres; must be the same on all ranks.

        Raises:
            ConfigError: The loss does not accept this margin, or the sample rate is too low for the classes.
        """
        super().__init__()
        given: dict[str, Any] = {
            name: value for name, value in (("margin", margin), ("scale", scale)) if value is not None
        }
        settings = replace(settings or MarginSettings(), **given)
        topology = comm_from_process_group(process_group, torch.device("cpu")).topology
        rows = topology.rank_range(num_classes) if layout == "sharded" else None
        centres = Centres(num_classes, embedding_dim, seed, rows)
        self.loss = DistributedLoss(centres, build_margin(self.name, settings), SoloComm(), layout, compute)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._process_group, self._world_size = process_group, topology.world_size

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the local share of the mean loss, a scalar. Collective: every rank must call it, and its backward.

        Args:
            embeddings: (B, D), any floating dtype; need not be normalised. B may differ between ranks and may be 0.
            labels: Class ids (B,), integers in [0, C).

        Returns:
            ``W / count * sum of local losses`` for W ranks and ``count`` samples over all ranks. Its average over the
            ranks is the mean loss of the whole batch; with equal batches on all ranks it is the local mean.

        Raises:
            UsageError: Shapes or labels are invalid, or the number of ranks has changed since sharded centres were
                created.
        """
        self._check(embeddings, labels)
        comm = comm_from_process_group(self._process_group, embeddings.device)
        if self.loss.layout == "sharded" and comm.topology.world_size != self._world_size:
            problem = f"created for {self._world_size} ranks, called by {comm.topology.world_size}"
            raise UsageError(f"{self}: layout 'sharded': {problem}; initialise torch.distributed before the loss")
        training = self.training and torch.is_grad_enabled()
        self.step += training
        count = sum(comm.all_gather_sizes(len(labels)))
        # Set only during the call, because a process group cannot be copied or pickled with the module.
        self.loss.comm = comm
        try:
            step = max(1, int(self.step))
            loss = self.loss(embeddings, labels.long(), step=step, count=max(1, count), average_gradients=True)
            if training:
                self.loss.end_step()
            return loss
        finally:
            self.loss.comm = SoloComm(embeddings.device)

    def gather_centres(self) -> torch.Tensor:
        """Return the centres of all classes (C, D), detached. Collective if sharded: every rank must call it."""
        weight_CD = self.loss.centres.weight.detach()
        if self.loss.layout == "replicated":
            return weight_CD
        return comm_from_process_group(self._process_group, weight_CD.device).all_gather_rows(weight_CD)

    def extra_repr(self) -> str:
        dim = self.loss.centres.weight.shape[1]
        return f"num_classes={self.loss.centres.classes}, embedding_dim={dim}, layout={self.loss.layout!r}"

    def _check(self, embeddings: torch.Tensor, labels: torch.Tensor) -> None:
        dim, classes, name = self.loss.centres.weight.shape[1], self.loss.centres.classes, type(self).__name__
        if embeddings.ndim != 2 or embeddings.shape[1] != dim or labels.shape != embeddings.shape[:1]:
            shapes = f"{tuple(embeddings.shape)} and {tuple(labels.shape)}"
            raise UsageError(f"{name}: embeddings and labels have shapes {shapes}; expected (B, {dim}) and (B,)")
        if len(labels):
            low, high = (int(bound) for bound in torch.aminmax(labels))
            if low < 0 or high >= classes:
                raise UsageError(f"{name}: labels range from {low} to {high}; allowed: 0 to {classes - 1}")


class NormFace(MarginLossModule):
    """NormFace (s = 30): softmax over scaled cosines, without a margin. Source: Wang et al., ACM MM 2017."""

    name = "softmax"


class SphereFace(MarginLossModule):
    """SphereFace, A-Softmax (m = 4, annealed, s = norm of the embedding). Source: Liu et al., CVPR 2017."""

    name = "sphereface"


class SphereFaceRv1(MarginLossModule):
    """SphereFace-R v1 (m = 1.5, s = 30). Source: Liu et al., TPAMI 2022."""

    name = "sphereface_r_v1"


class SphereFaceRv2(MarginLossModule):
    """SphereFace-R v2 (m = 1.4, s = 60). Source: Liu et al., TPAMI 2022."""

    name = "sphereface_r_v2"


class CosFace(MarginLossModule):
    """CosFace (m = 0.35, s = 64). Source: Wang et al., CVPR 2018."""

    name = "cosface"


class ArcFace(MarginLossModule):
    """ArcFace (m = 0.5, s = 64). Source: Deng et al., CVPR 2019."""

    name = "arcface"


class SphereFace2(MarginLossModule):
    """SphereFace2, type C (m = 0.4, s = 40), with a learnt bias. Source: Wen et al., ICLR 2022."""

    name = "sphereface2"


class AdaFace(MarginLossModule):
    """AdaFace (m = 0.4, h = 0.333, s = 64). Source: Kim et al., CVPR 2022."""

    name = "adaface"


def exclude_sharded_centres(model: nn.Module) -> list[str]:
    """Exclude the sharded centres in a model from the averaging of gradients by DistributedDataParallel.

    Each rank holds different rows, whose gradients are complete already. Call it before the model is wrapped.

    Returns:
        The names of the excluded parameters.
    """
    names = [
        f"{prefix}.loss.centres.weight".removeprefix(".")
        for prefix, module in model.named_modules()
        if isinstance(module, MarginLossModule) and module.loss.layout == "sharded"
    ]
    ignored = [*getattr(model, "_ddp_params_and_buffers_to_ignore", ()), *names]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    return names
