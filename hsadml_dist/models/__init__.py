"""Backbones behind one registry, the embedding neck, and what may be done to them before training."""
