"""Recipes: frozen dataclasses, one file a section, free of torch."""

from hsadml_dist.config.recipe import Recipe

__all__ = ["Recipe"]
