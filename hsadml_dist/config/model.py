"""Settings of the network: backbone and embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsadml_dist.config.keys import setting


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
