"""Detect, report and skip steps with NaN or Inf.

In the normal case the check costs a look at three numbers that every rank has anyway. Only if one of them is not finite
is the step rolled back, and each rank searches its samples one by one for those that may have caused it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.base import Engine, LossFn, nonfinite_tensor
from hsadml_dist.engine.head import Head
from hsadml_dist.errors import DataError, NumericalError

MAX_SHOWN = 8
"""Largest number of sample keys in a message."""

Suspect = tuple[str, str]
"""(sample key, which of its values is not finite: image, embedding or loss)."""


@dataclass(frozen=True, kw_only=True)
class NonFiniteStep:
    """Diagnosis of a step with NaN or Inf; equal on all ranks.

    Attributes:
        step: The step, from 1.
        loss: Mean loss of the global batch.
        gradient: The first parameter whose gradient is not finite, or None.
        weight: The first weight or buffer that was not finite before the step; then no sample is the cause.
        suspects: The samples that are not finite by themselves.
        keys: All samples of the step, in global order.
    """

    step: int
    loss: float = field(compare=False)  # NaN is not equal to itself
    gradient: str | None
    weight: str | None
    suspects: tuple[Suspect, ...]
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"step {self.step}: {self._problem()}; {self._cause()}"

    def _problem(self) -> str:
        if not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        if self.gradient is not None:
            return f"the loss is {self.loss:.6g}, but the gradient of {self.gradient!r} is not finite"
        return f"the loss is {self.loss:.6g}, but the norm of the gradient overflows"

    def _cause(self) -> str:
        if self.weight is not None:
            return f"{self.weight!r} was not finite before this step, so no sample is the cause"
        if self.suspects:
            return "not finite by themselves: " + _listed(f"the {what} of {key}" for key, what in self.suspects)
        keys = _listed(self.keys)
        return f"image, embedding and loss of each single sample are finite; the {len(self.keys)} samples: {keys}"


class Guard:
    """Decides whether the training continues after a step with NaN or Inf.

    Attributes:
        consecutive_skips: Number of steps skipped in a row up to the last one. Saved in checkpoints, so that a resumed
            training gives up at the same step as an uninterrupted one.
    """

    def __init__(self, policy: Literal["stop", "skip"], limit: int) -> None:
        self._policy, self._limit = policy, limit
        self.consecutive_skips = 0

    def on_applied(self) -> None:
        """Record that a step was applied."""
        self.consecutive_skips = 0

    def on_skipped(self, diagnosis: NonFiniteStep) -> None:
        """Record that a step was not applied.

        Raises:
            NumericalError: The training must end; every rank raises it.
        """
        if self._policy == "skip" and self.consecutive_skips < self._limit:
            self.consecutive_skips += 1
            return
        problem = f"skipped steps before it in a row: {self.consecutive_skips}; train.skip_limit is {self._limit}"
        if self._policy == "stop":
            problem = "the step changed nothing; train.on_nonfinite is 'stop', 'skip' would continue without it"
        raise NumericalError(f"{diagnosis}; {problem}", diagnosis.step)


def check_labels(batch: Batch, classes: int) -> None:
    """Reject labels without a class centre; cheap while the batch is still on the CPU.

    Raises:
        DataError: A label is outside ``range(classes)``.
    """
    for key, label in zip(batch.keys, batch.label.tolist(), strict=True):
        if not 0 <= label < classes:
            raise DataError(f"sample {key}: label {label} is not one of the {classes} classes 0 to {classes - 1}")


def rollback_and_diagnose(
    step: int, loss: float, engine: Engine, head: Head, parts: Sequence[Batch], loss_fn: LossFn, comm: Comm
) -> NonFiniteStep:
    """Roll back a step after its backward pass, and find what was not finite. Collective: every rank must call it.

    Args:
        step: The step, from 1.
        loss: Mean loss of the global batch.
        engine: Its gradients are dropped and its buffers restored.
        head: Its gradients are dropped.
        parts: Micro-batches of this rank.
        loss_fn: Loss of the step.
        comm: The ranks.
    """
    gradient = engine.nonfinite_gradient() or _in_head(head.nonfinite_gradient())
    engine.discard()
    head.discard()
    weight = engine.nonfinite_weight() or _in_head(nonfinite_tensor(head.loss))
    suspects = [suspect for part in parts for suspect in _suspects(engine, part, loss_fn)]
    keys = [key for part in parts for key in part.keys]
    gathered = comm.all_gather_json((gradient, weight, suspects, keys))
    gradients, weights, suspect_lists, key_lists = zip(*gathered, strict=True)
    return NonFiniteStep(
        step=step,
        loss=loss,
        gradient=_first(gradients),
        weight=_first(weights),
        suspects=tuple((key, what) for part in suspect_lists for key, what in part),
        keys=tuple(key for part in key_lists for key in part),
    )


@torch.no_grad()
def _suspects(engine: Engine, part: Batch, loss_fn: LossFn) -> list[Suspect]:
    """Return the samples that are not finite by themselves; each rank has as many, as the loss may be collective."""
    found = []
    with _eval_mode(engine.model):
        for index, key in enumerate(part.keys):
            image, label = part.image[index : index + 1], part.label[index : index + 1]
            emb_BD = engine.embed(image)
            values = {"image": image, "embedding": emb_BD, "loss": loss_fn(emb_BD, label)}
            nonfinite = [name for name, tensor in values.items() if not tensor.isfinite().all()]
            if nonfinite:
                found.append((key, nonfinite[0]))
    return found


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode: single samples have no batch statistics, and dropout would hide values."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _in_head(name: str | None) -> str | None:
    return None if name is None else f"head.{name}"


def _first(names: Iterable[str | None]) -> str | None:
    return next((name for name in names if name is not None), None)


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    rest = len(items) - MAX_SHOWN
    return ", ".join(items[:MAX_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
