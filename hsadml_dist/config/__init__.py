"""Recipes: frozen dataclasses, free of torch, and how to load and check them."""

from hsadml_dist.config.recipe import Recipe

__all__ = ["Recipe"]
