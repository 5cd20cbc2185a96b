"""The losses sample by sample, as the papers write them: slow, obvious, with arccosines. For fp64 only."""

from __future__ import annotations

import math

import torch


def losses(emb_BD, centre_CD, label_B, name, m, s, weight):
    """Return each sample's loss. s None: the embedding's norm; weight: A-Softmax's lambda."""
    return [
        _loss(emb_D, centre_CD, int(label), name, m, s, weight) for emb_D, label in zip(emb_BD, label_B, strict=True)
    ]


def _loss(emb_D, centre_CD, label, name, m, s, weight):
    norm = (emb_D * emb_D).sum().sqrt()
    scale = norm if s is None else s
    logits = []
    for number, centre_D in enumerate(centre_CD):
        cos = (emb_D * centre_D).sum() / (norm * (centre_D * centre_D).sum().sqrt())
        logits.append(scale * (_psi(cos, name, m, weight) if number == label else cos))
    return -torch.log(torch.exp(logits[label]) / sum(torch.exp(logit) for logit in logits))


def _psi(cos, name, m, weight):
    if name == "softmax":
        return cos
    if name == "cosface":
        return cos - m
    theta = torch.acos(cos)
    k = math.floor(m * float(theta.detach()) / math.pi)
    psi = (-1) ** k * torch.cos(m * theta) - 2 * k
    return (weight * cos + psi) / (1 + weight)
