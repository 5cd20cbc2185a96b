"""Evaluation of embeddings: nearest neighbours, classifiers, baselines, metrics with intervals, and inference."""
