"""Parts of a network that keep their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from hsadml_dist.errors import ConfigError, Fault, did_you_mean

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def freeze(network: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Freeze parts of a network: their weights get no gradient.

    Args:
        network: Changed in place.
        names: Submodules or single parameters, such as ``backbone.blocks.0`` or ``backbone.positions``.

    Returns:
        The names of the BatchNorm layers among them, which must keep their running statistics too: the caller holds
        them in evaluation mode.

    Raises:
        ConfigError: A name that the network does not have, or nothing would be left to train.
    """
    faults = [Fault(where="recipe", key="model.freeze", problem=problem) for problem in _problems(network, names)]
    if faults:
        raise ConfigError(faults)
    for name, parameter in network.named_parameters():
        if _within(name, names):
            parameter.requires_grad_(False)
    return tuple(n for n, m in network.named_modules() if isinstance(m, BATCH_NORM) and _within(n, names))


def frozen_line(network: nn.Module, names: Sequence[str], fixed: Sequence[str]) -> str:
    """Return one line on what :func:`freeze` did."""
    tensors = [p for n, p in network.named_parameters() if _within(n, names)]
    count, whole = sum(p.numel() for p in tensors), sum(p.numel() for p in network.parameters())
    text = f"frozen: {', '.join(names)} ({len(tensors)} tensors, {count:,} of {whole:,} weights)"
    return text + (f"; {len(fixed)} BatchNorm layers in them keep their running statistics" if fixed else "")


def _problems(network: nn.Module, names: Sequence[str]) -> Iterator[str]:
    known = {n for n, _ in network.named_modules() if n} | {n for n, _ in network.named_parameters()}
    wrong = [name for name in names if name not in known]
    for name in wrong:
        yield f"the network has no {name!r}{did_you_mean(name, known) or _siblings(name, known)}"
    if not wrong and all(_within(name, names) for name, _ in network.named_parameters()):
        yield f"{', '.join(names)}: nothing would be left to train"


def _siblings(name: str, known: set[str]) -> str:
    """Return the parts of the longest known part of a name, or of the whole."""
    parent = name.rpartition(".")[0]
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    parts = sorted(k for k in known if k.startswith(prefix) and "." not in k.removeprefix(prefix))
    shown = ", ".join(parts[:8]) + (", ..." if len(parts) > 8 else "")
    return f"; it has {shown}"


def _within(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)
