"""Build the network and the loss that a recipe describes, for training, inference and export alike."""

from __future__ import annotations

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import LossConfig
from hsadml_dist.losses.margins import AdaptiveNorm, Annealing, MarginLoss, MarginSettings, build_margin
from hsadml_dist.models.network import EmbeddingNet, build_model


def build_network(recipe: Recipe) -> EmbeddingNet:
    """Return the recipe's network with its initial weights, on the CPU."""
    return build_model(
        recipe.model.name,
        embedding_dim=recipe.model.embedding_dim,
        dropout=recipe.model.dropout,
        image_size=recipe.data.image_size,
        seed=recipe.train.seed,
        batch_norm=recipe.model.batch_norm,
        frozen=recipe.model.freeze,
    )


def build_margin_loss(loss: LossConfig) -> MarginLoss:
    """Return the margin loss that a recipe describes.

    Raises:
        ConfigError: The loss does not accept this margin.
    """
    annealing = Annealing(
        base=loss.lambda_base, gamma=loss.lambda_gamma, power=loss.lambda_power, minimum=loss.lambda_min
    )
    chosen = MarginSettings(
        margin=loss.margin,
        scale=loss.scale,
        grad_mode=loss.grad_mode,
        annealing=annealing,
        adaptive=AdaptiveNorm(concentration=loss.norm_concentration, momentum=loss.norm_momentum),
        positive_weight=loss.positive_weight,
        sharpness=loss.sharpness,
    )
    return build_margin(loss.name, chosen)


def loss_scale(loss: LossConfig) -> float | None:
    """Return the factor on all cosines, None where it is each embedding's norm.

    Raises:
        ConfigError: The loss cannot have this margin.
    """
    return build_margin_loss(loss).at(0).scale
