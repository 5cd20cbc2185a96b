"""The recipe: one frozen dataclass per section, and :class:`Recipe`, which contains them all.

Imports neither torch nor NumPy, so that a login node can load and check recipes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hsadml_dist.config.schema import iter_settings, setting
from hsadml_dist.config.transform_rules import transform_problems
from hsadml_dist.loss_rules import LossName, margin_problem

Conflict = tuple[tuple[str, ...], str]
"""The dotted keys of settings in conflict, and the problem, which is reported at the first of them."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The input: shards, folds, order and augmentation.

    Attributes:
        shards: Folder written by ``hsadml shards build``, or its URL: ``http://``, ``https://`` or ``s3://``.
        stage: Folder on the node's own disk to which shards are copied before they are read. Environment variables are
            expanded on the node, so ``$TMPDIR/shards`` may differ between nodes. None means that shards at a URL are
            copied to the user's cache and others are read where they are.
        label: The classes to learn: those of the shards, or ``person``, which makes each patient a class. The latter
            needs shards split by slice or exam, so that the patients of the test fold occur in training.
        fold: Test fold; never read in training.
        val_fold: A second fold that is held out: neither training nor the evaluation of ``fold`` reads it. It chooses
            nothing; the last weights are evaluated with or without it.
        workers: Loader processes per rank; 0 loads in the rank itself.
        prefetch: Batches that each worker prepares ahead.
        order: ``exact`` permutes all samples in each epoch. ``window`` permutes the shards, takes ``window`` of them at
            a time and permutes the samples inside: one pass over the shards per epoch.
        window: Number of shards mixed at a time by ``order: window``.
        image_size: Side length to which images are resized, in pixels.
        transforms: Random augmentations of the training images, MONAI's array transforms by ``_target_``; see
            :mod:`hsadml_dist.config.transform_rules`. None means the default set, an affine map with changes of
            intensity; an empty list means no augmentation.
        augmentation: ``monai`` applies the transforms one after another; ``fused`` applies mirror, affine map and
            changes of intensity in one resampling of the whole batch, with the same random numbers.
        cache: Folder on the node's own disk for images prepared up to the augmentation; environment variables are
            expanded on the node. None reads and resizes each image every time.
    """

    shards: str = setting(fixed=False)
    stage: str | None = setting(None, fixed=False)
    label: Literal["class", "person"] = setting("class")
    fold: int = setting(0, ge=0)
    val_fold: int | None = setting(None, ge=0)
    workers: int = setting(0, fixed=False, ge=0)
    prefetch: int = setting(2, fixed=False, ge=1)
    order: Literal["exact", "window"] = setting("exact")
    window: int = setting(8, ge=1)
    image_size: int = setting(112, ge=8)
    transforms: tuple[dict[str, Any], ...] | None = setting(None)
    augmentation: Literal["monai", "fused"] = setting("monai")
    cache: str | None = setting(None, fixed=False)

    @property
    def held_out_folds(self) -> tuple[int, ...]:
        """The folds that training never reads."""
        return tuple(fold for fold in (self.fold, self.val_fold) if fold is not None)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield the settings that are not allowed together."""
        if self.val_fold is not None and self.val_fold == self.fold:
            yield ("data.val_fold", "data.fold"), f"{self.val_fold} is the test fold too; the two must differ"

    def refused_transforms(self) -> Iterator[Conflict]:
        """Yield the transforms and arguments that a recipe may not name."""
        for number, item in enumerate(self.transforms or (), start=1):
            for problem in transform_problems(item):
                yield ("data.transforms",), f"item {number}: {problem}"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: backbone and embedding.

    Attributes:
        name: Name of a registered backbone.
        embedding_dim: Dimension of the embedding.
        dropout: Dropout probability before the embedding layer.
        init_from: Initial weights of a new run, a safetensors file; not needed to resume.
        batch_norm: How BatchNorm layers are replaced. keep: not at all, each rank normalises by its own part of the
            batch; group: by GroupNorm, which does not depend on the number of ranks; sync: by statistics of the global
            batch, on GPUs only.
        freeze: Modules whose weights are frozen, such as backbone.patch_embedding or backbone.blocks.0.
    """

    name: str = setting("resnet_gn_small")
    embedding_dim: int = setting(128, ge=2)
    dropout: float = setting(0.0, ge=0, le=0.95)
    init_from: str | None = setting(None)
    batch_norm: Literal["keep", "group", "sync"] = setting("keep", added_later=True)
    freeze: tuple[str, ...] = setting((), added_later=True)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The hyperspherical loss.

    Attributes:
        name: softmax (NormFace), sphereface (A-Softmax), sphereface_r_v1, sphereface_r_v2, cosface, arcface,
            sphereface2 (type C) or adaface.
        margin: Margin m of the loss; None means the default of its paper.
        scale: Factor s on all cosines; None means the default of its paper, for sphereface the embedding's norm.
        grad_mode: exact: true derivatives; characteristic: the offset of the margin is held constant.
        energy: Weight of the hyperspherical energy of the class centres (MHE); 0: none.
        layout: replicated: every rank has all class centres; sharded: each rank has a part of them; auto: the layout
            with the smaller messages.
        backward: store: keep all cosines for the backward pass; stream: compute them twice; auto: keep what fits.
        memory_mib: Memory that ``backward: auto`` may use, in MiB.
        sample_rate: Fraction of the classes that a step compares with; at least one class on average.
        lambda_base: A-Softmax annealing: lambda at step 0.
        lambda_gamma: A-Softmax annealing: decay per step.
        lambda_power: A-Softmax annealing: exponent of the decay.
        lambda_min: A-Softmax annealing: smallest lambda.
        positive_weight: SphereFace2: weight of the target class in the loss.
        sharpness: SphereFace2: exponent t of its similarity adjustment.
        norm_concentration: AdaFace: h, the image quality of a norm one standard deviation above the mean.
        norm_momentum: AdaFace: weight of a step's mean and standard deviation in their running values.
    """

    name: LossName = setting("sphereface")  # noqa: RUF009  # a Literal, which ruff does not see
    margin: float | None = setting(None, ge=0)
    scale: float | None = setting(None, gt=0)
    grad_mode: Literal["exact", "characteristic"] = setting("exact")
    energy: float = setting(0.0, ge=0)
    layout: Literal["auto", "replicated", "sharded"] = setting("auto", fixed=False)
    backward: Literal["auto", "store", "stream"] = setting("auto", fixed=False)
    memory_mib: float = setting(1024.0, fixed=False, gt=0)
    sample_rate: float = setting(1.0, gt=0, le=1)
    lambda_base: float = setting(1000.0, ge=0)
    lambda_gamma: float = setting(0.12, ge=0)
    lambda_power: float = setting(1.0, ge=0)
    lambda_min: float = setting(5.0, ge=0)
    positive_weight: float = setting(0.7, gt=0, le=1)
    sharpness: float = setting(3.0, ge=1)
    norm_concentration: float = setting(0.333, gt=0)
    norm_momentum: float = setting(0.01, gt=0, le=1)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield a margin that the loss does not accept."""
        problem = margin_problem(self.name, self.margin)
        if problem is not None:
            yield ("loss.margin", "loss.name"), problem


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser of backbone and class centres, and its learning-rate schedule, a pure function of the step.

    Attributes:
        name: adamw or sgd.
        lr: Peak learning rate.
        head_lr_factor: Learning rate of the class centres, as a multiple of ``lr``.
        weight_decay: Decoupled decay (AdamW) or L2 (SGD) of matrices and kernels; not of centres, norms and biases.
        momentum: Momentum of SGD.
        beta1: Decay of the first moment of AdamW.
        beta2: Decay of the second moment of AdamW.
        schedule: cosine down to ``lr_end``, or constant; both after the warm-up.
        warmup_steps: Steps of linear warm-up from 0.
        lr_end: Final learning rate of the cosine, as a fraction of ``lr``.
        layer_decay: Factor on the learning rate per layer of distance from the embedding; None means 1.
        ema_decay: Decay of an exponential moving average (EMA) of the backbone's weights, which is then evaluated;
            None disables it.
    """

    name: Literal["adamw", "sgd"] = setting("adamw")
    lr: float = setting(2e-3, gt=0)
    head_lr_factor: float = setting(1.0, gt=0)
    weight_decay: float = setting(0.05, ge=0)
    momentum: float = setting(0.9, ge=0, le=1)
    beta1: float = setting(0.9, ge=0, lt=1)
    beta2: float = setting(0.999, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = setting("cosine")
    warmup_steps: int = setting(0, ge=0)
    lr_end: float = setting(0.01, ge=0, le=1)
    layer_decay: float | None = setting(None, gt=0, le=1, added_later=True)
    ema_decay: float | None = setting(None, gt=0, lt=1, added_later=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batch size and seed of a training; exactly one of ``steps`` and ``epochs`` is given.

    Attributes:
        steps: Number of optimiser steps.
        epochs: Number of passes over the training samples; the last step may reach into the next pass.
        global_batch: Samples per step over all ranks; the number of ranks must divide it.
        seed: Seed of weights, sample order and augmentation.
        on_nonfinite: Reaction to a NaN or Inf in loss or gradient. stop: end the run with an error; skip: leave the
            weights as they are and continue with the next step. May change on resume, like the limit: only skipping
            gets past such a step, so a run that reaches its end is the same under both.
        skip_limit: Consecutive steps that may be skipped; one more ends the run.
    """

    steps: int | None = setting(None, fixed=False, ge=1)
    epochs: int | None = setting(None, fixed=False, ge=1)
    global_batch: int = setting(32, ge=1)
    seed: int = setting(0, ge=0)
    on_nonfinite: Literal["stop", "skip"] = setting("stop", fixed=False)
    skip_limit: int = setting(10, fixed=False, ge=1)

    @property
    def given_length(self) -> tuple[str, int | None]:
        """The setting that states the length, ``train.steps`` or ``train.epochs``, and its value."""
        return ("train.steps", self.steps) if self.steps is not None else ("train.epochs", self.epochs)

    def total_steps(self, samples: int) -> int:
        """Return the number of steps of a training on ``samples`` training samples."""
        return self.steps if self.steps is not None else -(-(self.epochs or 0) * samples // self.global_batch)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The engine that runs a step.

    Attributes:
        name: ddp: PyTorch's DistributedDataParallel; deepspeed: DeepSpeed with ZeRO.
        zero_stage: The ZeRO stage, that is, which states DeepSpeed partitions among the ranks: 0 none, 1 those of the
            optimiser, 2 the gradients too, 3 the weights too. Every stage resumes from checkpoints of every other.
        offload_optimizer: Keep the partitioned optimiser states, and the optimiser step, on the CPU.
        deepspeed_config: A DeepSpeed JSON file for options that the recipe does not set, such as bucket sizes.
        precision: fp32; bf16: autocast with fp32 weights; fp64: for verification.
        tf32: Compute fp32 products and convolutions as TF32 on GPUs: several times faster, with 10 bits of mantissa.
        deterministic: Use GPU kernels that repeat their result bit for bit, which a resumed run needs to equal one that
            was never stopped; the few operations that have none warn. False may be faster.
        accumulate: Microbatches into which a rank's part of the batch is cut to save memory.
        clip_norm: Largest gradient norm, of backbone and class centres separately; None disables clipping.
        static_graph: Tell DistributedDataParallel that every step has the same graph; allows unused parameters.
        compile: Compile the backbone with torch.compile, which takes tens of seconds at each start; ddp only.
        activation_checkpointing: Recompute the activations inside the backbone's blocks in the backward pass instead of
            storing them: less memory for about a third more time.
        threads: CPU threads per rank; None divides the available processors among the ranks of a node.
    """

    name: Literal["ddp", "deepspeed"] = setting("ddp", fixed=False)
    zero_stage: int = setting(2, fixed=False, ge=0, le=3)
    offload_optimizer: bool = setting(False, fixed=False)
    deepspeed_config: str | None = setting(None, fixed=False)
    precision: Literal["fp32", "bf16", "fp64"] = setting("fp32")
    tf32: bool = setting(False, added_later=True)
    deterministic: bool = setting(True, fixed=False)
    accumulate: int = setting(1, fixed=False, ge=1)
    clip_norm: float | None = setting(5.0, gt=0)
    static_graph: bool = setting(False, fixed=False)
    compile: bool = setting(False, fixed=False)
    activation_checkpointing: bool = setting(False, fixed=False)
    threads: int | None = setting(None, fixed=False, ge=1)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield the settings that are not allowed together."""
        deepspeed = self.name == "deepspeed"
        other = ("static_graph", "compile") if deepspeed else ("offload_optimizer", "deepspeed_config")
        for name in other:
            value = getattr(self, name)
            if value:
                given, needed = ("true", "ddp") if deepspeed else (repr(value), "deepspeed")
                yield (f"engine.{name}", "engine.name"), f"{given} needs engine.name {needed!r}, which is {self.name!r}"
        if not deepspeed:
            return
        if self.precision == "fp64":
            problem = "'fp64' is not supported by DeepSpeed, which keeps its weights in fp32; allowed: fp32, bf16"
            yield ("engine.precision", "engine.name"), problem
        if self.offload_optimizer and self.zero_stage == 0:
            problem = "true needs partitioned optimiser states: engine.zero_stage 1, 2 or 3"
            yield ("engine.offload_optimizer", "engine.zero_stage"), problem


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept.

    Attributes:
        every: Steps between two checkpoints; one is also written at a stop and at the end.
        background: Continue training while a checkpoint is written, which needs memory for a second copy of the
            state. The checkpoints at a stop and at the end are always waited for.
        keep: Number of newest checkpoints to keep.
        keep_every: Also keep the checkpoints at multiples of this step; None keeps only the newest.
    """

    every: int = setting(200, fixed=False, ge=1)
    background: bool = setting(True, fixed=False)
    keep: int = setting(2, fixed=False, ge=1)
    keep_every: int | None = setting(None, fixed=False, ge=1)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Logs and time-outs of a run.

    Attributes:
        ledger: Record the sample keys of each step, in global order.
        tensorboard: Write TensorBoard files.
        timeout_seconds: Longest wait for a peer before the rank gives up.
        step_timeout_seconds: Longest time for a step, including its data; the start, the first step, a save and the
            evaluation get ten times as long. A slower rank writes its stacks and ends the run; None disables it.
        stop_lead_seconds: How long before the end time of its job a run stops by itself.
        code_change: Reaction to a resume with other code than that of the first start. ``name``: log the files that
            differ; ``refuse``: do not start.
    """

    ledger: bool = setting(False, fixed=False)
    tensorboard: bool = setting(True, fixed=False)
    timeout_seconds: int = setting(600, fixed=False, ge=1)
    step_timeout_seconds: int | None = setting(300, fixed=False, ge=3)
    stop_lead_seconds: int = setting(60, fixed=False, ge=0)
    code_change: Literal["name", "refuse"] = setting("name", fixed=False)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The evaluation of embeddings.

    Attributes:
        at_end: Evaluate the run after its last step.
        batch: Images embedded at a time.
        block: Gallery samples compared at a time.
        classifiers: Fit scikit-learn classifiers on the embeddings too.
        resamples: Has no effect: intervals need no resampling any more. Accepted for recipes of version 0.1.
        allow_trained: Evaluate the run's own test fold even if it repeats images of the training folds; every figure is
            then marked.
    """

    at_end: bool = setting(True, fixed=False)
    batch: int = setting(64, fixed=False, ge=1)
    block: int = setting(8192, fixed=False, ge=1)
    classifiers: bool = setting(True, fixed=False)
    resamples: int = setting(2000, fixed=False, ge=100)
    allow_trained: bool = setting(False, fixed=False)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def conflicts(self, *, stored: bool = False) -> Iterator[Conflict]:
        """Yield the settings that are not allowed together, and transforms that are not allowed.

        Args:
            stored: True for the recipe of a run folder that is only read: an older version may have allowed more
                transforms, and its results must stay readable.
        """
        if (self.train.steps is None) == (self.train.epochs is None):
            given = "neither" if self.train.steps is None else "both"
            problem = f"exactly one of train.steps and train.epochs must be given, {given} is"
            yield ("train.steps", "train.epochs"), problem
        if self.train.global_batch % self.engine.accumulate:
            problem = f"{self.engine.accumulate} does not divide train.global_batch {self.train.global_batch}"
            yield ("engine.accumulate", "train.global_batch"), problem
        yield from self.data.conflicts()
        yield from self.loss.conflicts()
        if not stored:
            yield from self.data.refused_transforms()
        yield from self.engine.conflicts()

    def identity(self) -> dict[str, Any]:
        """Return the settings that must not change on resume, by dotted key."""
        kept = {key: value for key, value, rule in iter_settings(self) if rule.fixed}
        # A cosine reaches its end at the last step: another length would be another curve from the first step on.
        if self.optim.schedule == "cosine":
            kept |= {"train.steps": self.train.steps, "train.epochs": self.train.epochs}
        return kept

    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits that identify the settings which must not change on resume.

        Settings added later do not count while at their defaults, so that an update of the package keeps a run's value.
        """
        unused = {key for key, value, rule in iter_settings(self) if rule.added_later and value == rule.default}
        named = {key: value for key, value in self.identity().items() if key not in unused}
        text = json.dumps(named, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested plain dictionaries."""
        return dataclasses.asdict(self)
