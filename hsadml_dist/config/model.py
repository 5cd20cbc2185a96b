"""Settings of the network: backbone and embedding."""

from __future__ import annotations

from dataclasses import dataclass

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network that maps an image to an embedding.

    Attributes:
        name: A backbone's registered name.
        embedding_dim: Number of components of the embedding.
        dropout: Probability of dropping a feature before the embedding.
        init_from: Weights for a new run, a safetensors file; resuming needs no setting.
    """

    name: str = setting("resnet_gn_small")
    embedding_dim: int = setting(128, least=2)
    dropout: float = setting(0.0, least=0, most=0.95)
    init_from: str | None = setting(None)
