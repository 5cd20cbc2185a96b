"""Straightforward autograd implementations of the losses, for any dtype."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, one_hot

from tests.losses.slow_loop import CONCENTRATION, PULL, SHARPNESS, Rule


def mean_loss(emb_BD, centre_CD, label_B, rule: Rule, *, bias=None, norms=(0.0, 1.0)):
    """Return the mean loss, computed by the losses of torch."""
    logit_BC, target_BC = logits(emb_BD, centre_CD, label_B, rule, bias, norms)
    if rule.name != "sphereface2":
        return cross_entropy(logit_BC, label_B)
    weight_BC = torch.full_like(logit_BC, 1 - PULL).masked_fill(target_BC, PULL) / rule.s
    summed = binary_cross_entropy_with_logits(logit_BC, target_BC.to(logit_BC), weight=weight_BC, reduction="sum")
    return summed / len(emb_BD)


def careful_mean_loss(emb_BD, centre_CD, label_B, rule: Rule, *, bias=None, norms=(0.0, 1.0)):
    """Return the mean loss in a form that is accurate for well separated samples."""
    logit_BC, target_BC = logits(emb_BD, centre_CD, label_B, rule, bias, norms)
    target_B = logit_BC[target_BC]
    if rule.name != "sphereface2":
        return softplus(logit_BC.masked_fill(target_BC, -math.inf).logsumexp(1) - target_B).mean()
    others_B = softplus(logit_BC).masked_fill(target_BC, 0).sum(1)
    return (PULL * softplus(-target_B) + (1 - PULL) * others_B).mean() / rule.s


def softplus(x):
    """Return log(1 + exp(x)); that of torch loses digits from 20 on."""
    return torch.logaddexp(x, torch.zeros_like(x))


def logits(emb_BD, centre_CD, label_B, rule: Rule, bias, norms):
    """Return logits (B, C) and the mask of the targets."""
    cos_BC = normalize(emb_BD, dim=1) @ normalize(centre_CD, dim=1).T
    norm_B = torch.linalg.vector_norm(emb_BD, dim=1)
    target_BC = one_hot(label_B, len(centre_CD)).bool()
    value_BC = torch.where(target_BC, psi(cos_BC[target_BC], rule, norm_B.detach(), norms)[:, None], eta(cos_BC, rule))
    logit_BC = value_BC * (norm_B[:, None] if rule.s is None else rule.s)
    return logit_BC if bias is None else logit_BC + bias, target_BC


def psi(cos, rule, norm, norms):
    """Return the target curve."""
    m = rule.m
    k = torch.floor(m * torch.acos(cos.detach()) / math.pi)
    q = (CONCENTRATION * (norm.clamp(0.001, 100) - norms[0]) / norms[1]).clamp(-1, 1)
    curves = {
        "softmax": lambda: cos,
        "sphereface": lambda: (
            (rule.weight * cos + (1 - 2 * (k % 2)) * torch.cos(m * torch.acos(cos)) - 2 * k) / (1 + rule.weight)
        ),
        "sphereface_r_v1": lambda: torch.cos((m * torch.acos(cos)).clamp(max=math.pi)),
        "sphereface_r_v2": lambda: cos,
        "cosface": lambda: cos - m,
        "arcface": lambda: torch.where(cos > -math.cos(m), torch.cos(torch.acos(cos) + m), cos + math.cos(m) - 1),
        "sphereface2": lambda: 2 * ((cos + 1) / 2) ** SHARPNESS - 1 - m,
        "adaface": lambda: torch.cos((torch.acos(cos) - m * q).clamp(0, math.pi)) - (m + m * q),
    }
    return curves[rule.name]()


def eta(cos, rule):
    """Return the curve of the other classes."""
    if rule.name == "sphereface_r_v2":
        return torch.cos(torch.acos(cos) / rule.m)
    return 2 * ((cos + 1) / 2) ** SHARPNESS - 1 + rule.m if rule.name == "sphereface2" else cos
