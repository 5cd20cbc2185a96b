"""The recipe: one frozen dataclass per section, and :class:`Recipe`, which holds them all.

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
from hsadml_dist.loss_names import LossName


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the samples come from.

    Attributes:
        shards: Folder written by ``hsadml shards build``, or its address: ``http://``, ``https://`` or ``s3://``.
        stage: Folder on the node's own disk, to which shards are copied before they are read; environment variables
            are taken from the node, so ``$TMPDIR/shards`` may differ on each. None: shards at an address go to the
            user's cache, others are read where they are.
        label: What the network learns to tell apart: the shards' classes, or persons, each of them a class. Persons
            need shards that are split by slice or exam, so that training knows those of the test fold.
        fold: Held out for the verdict; never read in training.
        val_fold: Held out for choosing a model; none: the last weights are judged.
        workers: Loader processes per rank; 0 reads in the rank itself.
        prefetch: Batches that each worker prepares ahead.
        order: ``exact`` permutes all samples anew each epoch. ``window`` permutes the shards, takes ``window`` of them
            at a time and permutes the samples inside: one pass over the shards an epoch.
        window: Shards that are mixed at a time where the order is ``window``.
        image_size: Side to which images are resized, in pixels.
        transforms: Random augmentations of the training images, MONAI transforms by ``_target_``; none: the
            package's own affine set. An empty list: no augmentation.
        augmentation: ``monai`` applies the transforms one after another; ``fused`` does mirror, affine map, scale and
            shift of intensity in one resampling of the whole batch, with the same random numbers.
        cache: Folder on the node's own disk that keeps each image as it is before augmentation; environment variables
            are taken from the node. None: each image is read and resized anew each time.
    """

    shards: str = setting(on_resume="movable")
    stage: str | None = setting(None, on_resume="movable")
    label: Literal["class", "person"] = setting("class")
    fold: int = setting(0, ge=0)
    val_fold: int | None = setting(None, ge=0)
    workers: int = setting(0, on_resume="movable", ge=0)
    prefetch: int = setting(2, on_resume="movable", ge=1)
    order: Literal["exact", "window"] = setting("exact")
    window: int = setting(8, ge=1)
    image_size: int = setting(112, ge=8)
    transforms: tuple[dict[str, Any], ...] | None = setting(None)
    augmentation: Literal["monai", "fused"] = setting("monai")
    cache: str | None = setting(None, on_resume="movable")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network that maps an image to an embedding.

    Attributes:
        name: A backbone's registered name.
        embedding_dim: Number of components of the embedding.
        dropout: Probability of dropping a feature before the embedding.
        init_from: Weights for a new run, a safetensors file; resuming needs no setting.
        batch_norm: What becomes of BatchNorm layers. keep: as published, each rank normalises by its own part of the
            batch; group: GroupNorm, the same on any number of ranks; sync: statistics of the global batch, GPUs only.
        freeze: Parts that keep their weights, such as backbone.patch_embedding or backbone.blocks.0.
    """

    name: str = setting("resnet_gn_small")
    embedding_dim: int = setting(128, ge=2)
    dropout: float = setting(0.0, ge=0, le=0.95)
    init_from: str | None = setting(None)
    batch_norm: Literal["keep", "group", "sync"] = setting("keep", added_later=True)
    freeze: tuple[str, ...] = setting((), added_later=True)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss on the sphere.

    Attributes:
        name: softmax (NormFace), sphereface (A-Softmax), sphereface_r_v1, sphereface_r_v2, cosface, arcface,
            sphereface2 (type C) or adaface.
        margin: The loss's margin m; none: the default of its paper.
        scale: The factor on all cosines; none: the default of its paper, for sphereface the embedding's norm.
        grad_mode: exact: true derivatives; characteristic: the margin's offset is held constant.
        energy: Weight of the hyperspherical energy of the centres (MHE); 0: none.
        layout: Who holds the class centres: all ranks all of them, or each rank its share; auto: the one whose
            messages are smaller.
        backward: store: keep all cosines for the backward pass; stream: compute them twice; auto: keep what fits.
        memory_mib: What backward: auto may keep, in MiB.
        sample_rate: Share of the classes that a step compares with.
        lambda_base: A-Softmax annealing: lambda at step 0.
        lambda_gamma: A-Softmax annealing: decay per step.
        lambda_power: A-Softmax annealing: exponent of the decay.
        lambda_min: A-Softmax annealing: lower end of lambda.
        positive_weight: SphereFace2: share of the target class in the loss.
        sharpness: SphereFace2: exponent t of its similarity adjustment.
        norm_concentration: AdaFace: h, quality of a norm one deviation above the mean.
        norm_momentum: AdaFace: weight of a step's own mean and deviation in their running values.
    """

    name: LossName = setting("sphereface")  # noqa: RUF009  # a Literal, which ruff does not see
    margin: float | None = setting(None, ge=0)
    scale: float | None = setting(None, gt=0)
    grad_mode: Literal["exact", "characteristic"] = setting("exact")
    energy: float = setting(0.0, ge=0)
    layout: Literal["auto", "replicated", "sharded"] = setting("auto", on_resume="movable")
    backward: Literal["auto", "store", "stream"] = setting("auto", on_resume="movable")
    memory_mib: float = setting(1024.0, on_resume="movable", gt=0)
    sample_rate: float = setting(1.0, gt=0, le=1)
    lambda_base: float = setting(1000.0, ge=0)
    lambda_gamma: float = setting(0.12, ge=0)
    lambda_power: float = setting(1.0, ge=0)
    lambda_min: float = setting(5.0, ge=0)
    positive_weight: float = setting(0.7, gt=0, le=1)
    sharpness: float = setting(3.0, ge=1)
    norm_concentration: float = setting(0.333, gt=0)
    norm_momentum: float = setting(0.01, gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser of backbone and centres, and its schedule: a pure function of the step.

    Attributes:
        name: adamw or sgd.
        lr: Peak learning rate.
        head_lr_factor: The centres' learning rate, as a multiple of ``lr``.
        weight_decay: Decoupled decay (AdamW) or L2 (SGD) of matrices and kernels; centres, norms and biases have none.
        momentum: Momentum of SGD.
        beta1: First moment's decay of AdamW.
        beta2: Second moment's decay of AdamW.
        schedule: cosine down to ``lr_end``, or constant; both after the warm-up.
        warmup_steps: Steps of linear rise from 0 at the start.
        lr_end: Last learning rate of the cosine, as a share of ``lr``.
        layer_decay: Factor on the learning rate for each layer further away from the embedding; none: all learn alike.
        ema_decay: Share that the running average of the backbone's weights keeps at each step, and the average is what
            is judged; none: no average.
    """

    name: Literal["adamw", "sgd"] = setting("adamw")
    lr: float = setting(2e-3, gt=0)
    head_lr_factor: float = setting(1.0, gt=0)
    weight_decay: float = setting(0.05, ge=0)
    momentum: float = setting(0.9, ge=0, le=1)
    beta1: float = setting(0.9, ge=0, le=1)
    beta2: float = setting(0.999, ge=0, le=1)
    schedule: Literal["cosine", "constant"] = setting("cosine")
    warmup_steps: int = setting(0, ge=0)
    lr_end: float = setting(0.01, ge=0, le=1)
    layer_decay: float | None = setting(None, gt=0, le=1, added_later=True)
    ema_decay: float | None = setting(None, gt=0, lt=1, added_later=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length and the seed of a training; exactly one of ``steps`` and ``epochs`` is given.

    Attributes:
        steps: Number of optimiser steps.
        epochs: Number of passes over the training samples; the last step may reach into the next pass.
        global_batch: Samples a step, over all ranks; the number of ranks divides it.
        seed: Seed of weights, order and augmentation.
        on_nonfinite: What a loss or gradient that is not finite does: stop: ends the run with one line; skip: the step
            changes nothing and the next one follows. Movable, like the limit: a run that reaches its end is the same
            run under either, since only skipping gets past such a step.
        skip_limit: Steps in a row that may be skipped; one more ends the run.
    """

    steps: int | None = setting(None, on_resume="extendable", ge=1)
    epochs: int | None = setting(None, on_resume="extendable", ge=1)
    global_batch: int = setting(32, ge=1)
    seed: int = setting(0, ge=0)
    on_nonfinite: Literal["stop", "skip"] = setting("stop", on_resume="movable")
    skip_limit: int = setting(10, on_resume="movable", ge=1)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step is carried out.

    Attributes:
        name: ddp: PyTorch's DistributedDataParallel; deepspeed: DeepSpeed with ZeRO.
        zero_stage: What DeepSpeed shares out among the ranks; 0: nothing, 1: the optimiser's moments, 2: the gradients
            too, 3: the weights too. Any stage goes on from any other's checkpoint.
        offload_optimizer: Whether the shared-out moments, and the step with them, are on the CPU.
        deepspeed_config: A DeepSpeed JSON file for what the recipe does not decide, such as bucket sizes.
        precision: fp32; bf16: autocast with fp32 weights; fp64: for verification.
        accumulate: Parts into which a rank's share of the batch is cut to save memory.
        clip_norm: Largest gradient norm, of backbone and of centres separately; none: no clipping.
        static_graph: Tell DistributedDataParallel that each step has the same graph; lets parameters stay unused.
        compile: Let torch.compile make the backbone's passes; takes tens of seconds at each start. ddp only.
        activation_checkpointing: Keep no activations inside the backbone's blocks but compute them once more in the
            backward pass: less memory for about a third more time.
        threads: CPU threads of a rank; none: the processors at hand shared among the ranks of a node.
    """

    name: Literal["ddp", "deepspeed"] = setting("ddp", on_resume="movable")
    zero_stage: int = setting(2, on_resume="movable", ge=0, le=3)
    offload_optimizer: bool = setting(False, on_resume="movable")
    deepspeed_config: str | None = setting(None, on_resume="movable")
    precision: Literal["fp32", "bf16", "fp64"] = setting("fp32")
    accumulate: int = setting(1, on_resume="movable", ge=1)
    clip_norm: float | None = setting(5.0, gt=0)
    static_graph: bool = setting(False, on_resume="movable")
    compile: bool = setting(False, on_resume="movable")
    activation_checkpointing: bool = setting(False, on_resume="movable")
    threads: int | None = setting(None, on_resume="movable", ge=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted key, problem) for settings that are right alone but not together."""
        if self.name != "deepspeed":
            for key, given in (
                ("offload_optimizer", self.offload_optimizer),
                ("deepspeed_config", self.deepspeed_config),
            ):
                if given:
                    yield f"engine.{key}", f"{given!r} is for engine.name 'deepspeed', which is {self.name!r}"
            return
        for key, given in (("static_graph", self.static_graph), ("compile", self.compile)):
            if given:
                yield f"engine.{key}", f"true is for engine.name 'ddp', which is {self.name!r}"
        if self.precision == "fp64":
            yield "engine.precision", "'fp64' is beyond DeepSpeed, which keeps its weights in fp32; allowed: fp32, bf16"
        if self.offload_optimizer and self.zero_stage == 0:
            yield "engine.offload_optimizer", "true needs moments that are shared out: engine.zero_stage 1, 2 or 3"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a checkpoint is written and which are kept.

    Attributes:
        every: Steps between two checkpoints; one is also written at a stop and at the end.
        background: Whether the steps go on while a checkpoint is written; costs the state's size in memory once more.
            The checkpoint of a stop and the last one are always waited for.
        keep: Newest checkpoints that are kept.
        keep_every: Checkpoints at multiples of this step are kept for good; none: only the newest.
    """

    every: int = setting(200, on_resume="movable", ge=1)
    background: bool = setting(True, on_resume="movable")
    keep: int = setting(2, on_resume="movable", ge=1)
    keep_every: int | None = setting(None, on_resume="movable", ge=1)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Records and time-outs of a run.

    Attributes:
        ledger: Whether each step's sample keys are recorded, in global order.
        tensorboard: Whether TensorBoard files are written.
        timeout_seconds: Longest wait for a peer before the rank gives up.
        step_timeout_seconds: Longest time for a step, from its data to its end; the start, the first step, a save and
            the evaluation get ten times as long. A rank that overruns writes its stacks and ends the run; null: none.
        stop_lead_seconds: How long before the job's end time a run stops by itself.
        code_change: What a start with other code than the first one's does: ``name`` goes on and names the files that
            differ, ``refuse`` does not start.
    """

    ledger: bool = setting(False, on_resume="movable")
    tensorboard: bool = setting(True, on_resume="movable")
    timeout_seconds: int = setting(600, on_resume="movable", ge=1)
    step_timeout_seconds: int | None = setting(300, on_resume="movable", ge=3)
    stop_lead_seconds: int = setting(60, on_resume="movable", ge=0)
    code_change: Literal["name", "refuse"] = setting("name", on_resume="movable")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How embeddings are judged.

    Attributes:
        at_end: Whether the run judges itself after its last step.
        batch: Images embedded at a time.
        block: References compared at a time.
        classifiers: Whether scikit-learn's classifiers are fitted on the embeddings too.
        resamples: Bootstrap samples of persons behind each interval.
    """

    at_end: bool = setting(True, on_resume="movable")
    batch: int = setting(64, on_resume="movable", ge=1)
    block: int = setting(8192, on_resume="movable", ge=1)
    classifiers: bool = setting(True, on_resume="movable")
    resamples: int = setting(2000, on_resume="movable", ge=100)


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

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted key, problem) for settings that are right alone but not together."""
        if (self.train.steps is None) == (self.train.epochs is None):
            given = "neither" if self.train.steps is None else "both"
            yield "train.steps", f"exactly one of train.steps and train.epochs must be given, {given} is"
        if self.data.val_fold is not None and self.data.val_fold == self.data.fold:
            yield "data.val_fold", f"{self.data.val_fold} is the test fold too; the two must differ"
        if self.train.global_batch % self.engine.accumulate:
            yield (
                "engine.accumulate",
                f"{self.engine.accumulate} does not divide train.global_batch {self.train.global_batch}",
            )
        yield from self.engine.conflicts()

    def identity(self) -> dict[str, Any]:
        """Return the settings that make the run what it is, by dotted key; none of them may change on resume."""
        kept = {key: value for key, value, rule in iter_settings(self) if rule.on_resume == "identity"}
        # A cosine reaches its end at the last step: another length would be another curve from the first step on.
        if self.optim.schedule == "cosine":
            kept |= {"train.steps": self.train.steps, "train.epochs": self.train.epochs}
        return kept

    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits that name the identity.

        Settings that came later and are at their defaults have no part in it, so that a run outlives an update.
        """
        unused = {key for key, value, rule in iter_settings(self) if rule.added_later and value == rule.default}
        named = {key: value for key, value in self.identity().items() if key not in unused}
        text = json.dumps(named, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested plain dictionaries."""
        return dataclasses.asdict(self)
