"""Hyperspherical losses: margins, class centres, and the loss over the global batch."""
