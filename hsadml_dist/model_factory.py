"""Build the network and the loss that a recipe describes, for training, inference and export alike."""

from __future__ import annotations

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import LossConfig
from hsadml_dist.losses.margins import AdaptiveNorm, Annealing, MarginLoss, MarginSettings, build_margin
from hsadml_dist.models.network import EmbeddingNet, build_model


def build_network(recipe: Recipe) -> EmbeddingNet:
    """Return the network of a recipe with its initial weights, on the CPU.

    Raises:
        ConfigError: See :func:`~hsadml_dist.models.network.build_model`.
    """
    return build_model(
        recipe.model.name,
        embedding_dim=recipe.model.embedding_dim,
        dropout=recipe.model.dropout,
        image_size=recipe.data.image_size,
        seed=recipe.train.seed,
        batch_norm=recipe.model.batch_norm,
        frozen=recipe.model.freeze,
    )


def build_margin_loss(config: LossConfig) -> MarginLoss:
    """Return the margin loss of a recipe.

    Raises:
        ConfigError: The loss does not accept this margin.
    """
    base, gamma, power, minimum = config.lambda_base, config.lambda_gamma, config.lambda_power, config.lambda_min
    settings = MarginSettings(
        margin=config.margin,
        scale=config.scale,
        grad_mode=config.grad_mode,
        annealing=Annealing(base=base, gamma=gamma, power=power, minimum=minimum),
        adaptive=AdaptiveNorm(concentration=config.norm_concentration, momentum=config.norm_momentum),
        positive_weight=config.positive_weight,
        sharpness=config.sharpness,
    )
    return build_margin(config.name, settings)


def loss_scale(config: LossConfig) -> float | None:
    """Return the factor on all cosines; None means the norm of each embedding.

    Raises:
        ConfigError: The loss does not accept this margin.
    """
    return build_margin_loss(config).at(0).scale
