"""The weights that are judged or asked, and what belongs to them.

Shapes: C classes, D components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hsadml_dist.checkpoint.layout import CheckpointName
from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.config import Recipe
from hsadml_dist.evaluation.result import CheckpointRef
from hsadml_dist.model_factory import build_network
from hsadml_dist.models.network import prepare_model
from hsadml_dist.run.folder import RunFolder

LAST_STEP = "last step"
AVERAGE = "last step, its running average of weights"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What is judged.

    Attributes:
        model: The bare network, on the ranks' device.
        centre_CD: All class centres, on the same device.
        checkpoint: Where they are kept.
        chosen_by: How these weights were chosen among all that the training went through.
    """

    model: nn.Module
    centre_CD: torch.Tensor
    checkpoint: CheckpointRef
    chosen_by: str = LAST_STEP


def chosen_by(recipe: Recipe) -> str:
    """Return in words which weights of a run are judged."""
    return LAST_STEP if recipe.optim.ema_decay is None else AVERAGE


def checkpoint_ref(name: CheckpointName) -> CheckpointRef:
    """Return a checkpoint as results name it."""
    return CheckpointRef(name=str(name), step=name.step, attempt=name.attempt)


def load_weights(run: RunFolder, recipe: Recipe, device: torch.device) -> tuple[Weights, str]:
    """Return the newest weights that verify, and the digest of the samples they were trained on.

    Raises:
        CheckpointError: No checkpoint verifies, or there is none.
    """
    state = load_inference_state(run)
    network = build_network(recipe)
    network.load_state_dict(state.model)
    model = prepare_model(network, device, recipe.engine.precision)
    weights = Weights(
        model=model,
        centre_CD=state.centres.to(device),
        checkpoint=checkpoint_ref(state.name),
        chosen_by=chosen_by(recipe),
    )
    return weights, state.data_digest
