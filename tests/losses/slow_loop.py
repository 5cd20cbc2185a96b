"""Reference implementation of the losses, sample by sample as in the papers, with arccosines. For fp64 only."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A loss with all settings.

    Attributes:
        name: As in a recipe.
        m: Margin.
        s: Factor on all cosines; None means the norm of the embedding.
        weight: A-Softmax's lambda.
        detached: Whether the offset of the margin is treated as a constant.
    """

    name: str
    m: float = 0.0
    s: float | None = None
    weight: float = 0.0
    detached: bool = False


PULL, SHARPNESS = 0.7, 3
"""Lambda and t of SphereFace2."""

CONCENTRATION = 0.333
"""h of AdaFace."""


def losses(emb_BD, centre_CD, label_B, rule, *, bias=None, norms=(0.0, 1.0), drawn=None):
    """Return the loss of each sample.

    Args:
        bias: SphereFace2's.
        norms: Mean and deviation of the norms that AdaFace goes by.
        drawn: The other classes to compare with; None means all.
    """
    return [
        _loss(emb_D, centre_CD, int(label), rule, bias, norms, drawn)
        for emb_D, label in zip(emb_BD, label_B, strict=True)
    ]


def _loss(emb_D, centre_CD, label, rule, bias, norms, drawn):
    norm = (emb_D * emb_D).sum().sqrt()
    scale = norm if rule.s is None else rule.s
    target, others = None, []
    for number, centre_D in enumerate(centre_CD):
        cos = (emb_D * centre_D).sum() / (norm * (centre_D * centre_D).sum().sqrt())
        if number == label:
            target = scale * held(rule, cos, psi(rule, cos, float(norm.detach()), norms))
        elif drawn is None or number in drawn:
            others.append(scale * held(rule, cos, eta(rule, cos)))
    if rule.name == "sphereface2":
        positive = torch.log1p(torch.exp(-(target + bias)))
        negative = sum(torch.log1p(torch.exp(other + bias)) for other in others)
        return (PULL * positive + (1 - PULL) * negative) / rule.s
    return -torch.log(torch.exp(target) / (torch.exp(target) + sum(torch.exp(other) for other in others)))


def held(rule, cos, value):
    """Return the value, or if detached the same value with the gradient of the cosine."""
    return cos + (value - cos).detach() if rule.detached else value


def psi(rule, cos, norm, norms):
    """Return the target curve at a cosine."""
    theta, m = torch.acos(cos), rule.m
    k = math.floor(m * float(theta.detach()) / math.pi)
    q = quality(norm, norms)
    curves = {
        "softmax": lambda: cos,
        "sphereface": lambda: (rule.weight * cos + (-1) ** k * torch.cos(m * theta) - 2 * k) / (1 + rule.weight),
        "sphereface_r_v1": lambda: torch.cos(torch.clamp(m * theta, max=math.pi)),
        "sphereface_r_v2": lambda: cos,
        "cosface": lambda: cos - m,
        "arcface": lambda: torch.cos(theta + m) if theta + m < math.pi else cos + math.cos(m) - 1,
        "sphereface2": lambda: sharpened(cos) - m,
        "adaface": lambda: torch.cos(torch.clamp(theta - m * q, 0, math.pi)) - (m + m * q),
    }
    return curves[rule.name]()


def eta(rule, cos):
    """Return the curve of the other classes at a cosine."""
    if rule.name == "sphereface_r_v2":
        return torch.cos(torch.acos(cos) / rule.m)
    return sharpened(cos) + rule.m if rule.name == "sphereface2" else cos


def sharpened(cos):
    """Return g of SphereFace2."""
    return 2 * ((cos + 1) / 2) ** SHARPNESS - 1


def quality(norm, norms):
    """Return the AdaFace quality of a sample from its norm and the running mean and deviation."""
    mean, deviation = norms
    return max(-1.0, min(1.0, CONCENTRATION * (min(max(norm, 0.001), 100.0) - mean) / deviation))


def is_drawn(class_id, *, rate, seed, step):
    """Return whether a class is drawn in a step, by a SplitMix64 hash of the class id."""
    whole = 2**64
    key = hashlib.blake2b(f"classes {seed} {step}".encode(), digest_size=8).digest()
    state = (int.from_bytes(key, "little") + class_id * 0x9E3779B97F4A7C15) % whole
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % whole
    state = (state ^ state >> 27) * 0x94D049BB133111EB % whole
    return (state ^ state >> 31) < rate * whole


def energy(centre_CD):
    """Return the mean of angle ** -2 over all pairs of centres."""
    count = len(centre_CD)
    unit_CD = [centre_D / (centre_D * centre_D).sum().sqrt() for centre_D in centre_CD]
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    return sum(torch.acos((unit_CD[i] * unit_CD[j]).sum()) ** -2 for i, j in pairs) / len(pairs)
