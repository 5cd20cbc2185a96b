"""Backbones behind one registry, and the embedding neck."""

from hsadml_dist.models.network import EmbeddingNet, build_model, rank_dependent_layers
from hsadml_dist.models.registry import BACKBONES

__all__ = ["BACKBONES", "EmbeddingNet", "build_model", "rank_dependent_layers"]
