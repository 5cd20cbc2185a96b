"""Hyperspherical deep metric learning for brain MRI, on any number of nodes."""
