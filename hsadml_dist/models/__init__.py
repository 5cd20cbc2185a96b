"""Backbones behind one registry, the embedding neck, and what may be done to them before training."""

from hsadml_dist.models.depth import layer_depths
from hsadml_dist.models.network import EmbeddingNet, build_model, rank_dependent_layers
from hsadml_dist.models.norms import refuse_sync
from hsadml_dist.models.recompute import recompute_activations
from hsadml_dist.models.registry import BACKBONES
from hsadml_dist.models.weights import Adopted, adopt_weights

__all__ = [
    "BACKBONES",
    "Adopted",
    "EmbeddingNet",
    "adopt_weights",
    "build_model",
    "layer_depths",
    "rank_dependent_layers",
    "recompute_activations",
    "refuse_sync",
]
