"""Recipes that come along; a package so that a wheel holds them."""
