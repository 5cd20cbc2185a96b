"""What is not finite is not learnt: how such a step is told apart, told, and passed over.

The good case costs a look at three numbers that all ranks have anyway. All else here happens after one of them was not
finite: the step is undone, and each rank looks through its samples one by one for those that may have caused it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.base import Engine, LossFn
from hsadml_dist.engine.head import Head
from hsadml_dist.errors import DataError, NumericalError

SHOWN = 8
"""Sample keys that a line names at most."""

Suspect = tuple[str, str]
"""(sample key, what of it is not finite: image, embedding or loss)."""


@dataclass(frozen=True, kw_only=True)
class NonFiniteStep:
    """What was not finite in a step; alike on all ranks.

    Attributes:
        step: The step, from 1.
        what: In words, what was not finite.
        weight: The first weight or buffer that was not finite before the step, if any: then no sample is to blame.
        suspects: The samples that are not finite by themselves.
        keys: All samples of the step, in global order.
    """

    step: int
    what: str
    weight: str | None
    suspects: tuple[Suspect, ...]
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"step {self.step}: {self.what}; {self._cause()}"

    def _cause(self) -> str:
        if self.weight is not None:
            return f"{self.weight!r} was not finite before this step, so no sample is to blame"
        if self.suspects:
            return "not finite by themselves: " + _listed(f"the {what} of {key}" for key, what in self.suspects)
        few = _listed(self.keys)
        return f"no single sample's image, embedding or loss is; the step's {len(self.keys)} samples: {few}"


class Guard:
    """Says whether a training goes on after a step that was not finite.

    Attributes:
        in_a_row: Steps skipped in a row up to the last one. Checkpoints carry it, so that a resumed training gives up
            at the same step as one that was never stopped.
    """

    def __init__(self, policy: Literal["stop", "skip"], limit: int) -> None:
        self._policy, self._limit = policy, limit
        self.consecutive_skips = 0

    def passed(self) -> None:
        """Note that a step was done."""
        self.consecutive_skips = 0

    def skipped(self, finding: NonFiniteStep) -> None:
        """Note that a step was not done.

        Raises:
            NumericalError: The training is to end; all ranks say the same.
        """
        if self._policy == "stop":
            stops = "the step changed nothing, and train.on_nonfinite is 'stop' ('skip' would go on without it)"
            raise NumericalError(f"{finding}; {stops}", finding.step)
        if self.consecutive_skips >= self._limit:
            before = f"{self.consecutive_skips} steps before it" if self.consecutive_skips > 1 else "step before it"
            stops = f"the {before} had to be skipped too, and train.skip_limit is {self._limit}"
            raise NumericalError(f"{finding}; {stops}", finding.step)
        self.consecutive_skips += 1


def check_labels(batch: Batch, classes: int) -> None:
    """Refuse labels that no centre stands for; cheap while the batch is still on the CPU.

    Raises:
        DataError: A label is outside ``range(classes)``.
    """
    if not len(batch.label):
        return
    low, high = (int(bound) for bound in torch.aminmax(batch.label))
    if low >= 0 and high < classes:
        return
    place = next(i for i, label in enumerate(batch.label.tolist()) if not 0 <= label < classes)
    label = int(batch.label[place])
    raise DataError(f"sample {batch.keys[place]}: label {label} is not one of the {classes} classes 0 to {classes - 1}")


def rollback_and_diagnose(
    step: int, loss: float, engine: Engine, head: Head, parts: Sequence[Batch], loss_fn: LossFn, comm: Comm
) -> NonFiniteStep:
    """Undo a step between its gradients and its end, and say what in it was not finite; to be called by all ranks.

    Args:
        step: The step, from 1.
        loss: The mean loss of the global batch.
        engine: Its gradients are dropped, its buffers put back.
        head: Its gradients are dropped.
        parts: This rank's batch.
        loss_fn: The step's loss.
        comm: The ranks.
    """
    gradient = engine.nonfinite_gradient() or _of_the_head(head.nonfinite_gradient())
    engine.discard()
    head.discard()
    weight = engine.nonfinite_weight() or _of_the_head(_nonfinite(head.loss))
    suspects = [suspect for part in parts for suspect in _suspects(engine, part, loss_fn)]
    keys = [key for part in parts for key in part.keys]
    told = comm.all_gather_object((gradient, weight, suspects, keys))
    gradients, weights, suspect_lists, key_lists = zip(*told, strict=True)
    return NonFiniteStep(
        step=step,
        what=_what(loss, _first(gradients)),
        weight=_first(weights),
        suspects=tuple(suspect for part in suspect_lists for suspect in part),
        keys=tuple(key for part in key_lists for key in part),
    )


def _what(loss: float, gradient: str | None) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if gradient is not None:
        return f"the loss is {loss:.6g}, but the gradient of {gradient!r} is not finite"
    return f"the loss is {loss:.6g}, but the norm of the gradient is beyond the largest number"


@torch.no_grad()
def _suspects(engine: Engine, part: Batch, loss_fn: LossFn) -> list[Suspect]:
    """Return the samples that are not finite by themselves; all ranks take as many, since losses may exchange them."""
    found = []
    with _evaluating(engine.model):
        for place, key in enumerate(part.keys):
            image, label = part.image[place : place + 1], part.label[place : place + 1]
            emb_BD = engine.embed(image)
            seen = {"image": image, "embedding": emb_BD, "loss": loss_fn(emb_BD, label)}
            wrong = [what for what, tensor in seen.items() if not tensor.isfinite().all()]
            if wrong:
                found.append((key, wrong[0]))
    return found


def _nonfinite(module: nn.Module) -> str | None:
    tensors = module.state_dict().items()
    return next((name for name, tensor in tensors if not tensor.isfinite().all()), None)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Judge samples one by one: not by their neighbours' mean, and with nothing dropped."""
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)


def _of_the_head(name: str | None) -> str | None:
    return None if name is None else f"head.{name}"


def _first(names: Iterable[str | None]) -> str | None:
    return next((name for name in names if name is not None), None)


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    rest = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
