"""Engines: how a step is carried out on the backbone, behind one protocol; the head stays outside of them."""
