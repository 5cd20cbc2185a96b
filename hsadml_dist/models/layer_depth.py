"""Find the blocks of a network and the depth of each parameter from its module structure.

A chain is a container with at least two items whose submodules have weights (true for a residual block, not for a
convolution). Blocks are the items of chains that contain no further chain, in order of registration. A container with a
single such item is a chain as well, if items of its type form chains elsewhere or are alone in several containers.
In a network without chains, the blocks are the items of its longest container.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter by name.

    0: everything before the first block, such as patches, positions and stem; 1 to n: the blocks, each with what
    follows it before the next; n + 1: everything after the last block, including the neck. This is the numbering of
    Bao et al., ICLR 2022 (BEiT).
    """
    groups = list(_grouped_parameters(model))
    last_block = max((index for index, (_, is_block) in enumerate(groups) if is_block), default=len(groups))
    depths: dict[str, int] = {}
    block = 0
    for index, (names, is_block) in enumerate(groups):
        block += is_block
        depth = block if index <= last_block else block + 1
        depths |= dict.fromkeys(names, depth)
    return {name: depths[name] for name, _ in model.named_parameters()}


def block_names(model: nn.Module) -> list[str]:
    """Return the names of the blocks of a network, in order of registration."""
    chains = _chains(model)
    parents = {module for module in model.modules() if any(part in chains for part in module.modules())}
    return [*_blocks("", model, chains, parents)] if chains else _longest_container(model)


def _grouped_parameters(model: nn.Module) -> Iterator[tuple[list[str], bool]]:
    """Yield groups of parameters in the order of registration, and whether each is a block."""
    blocks = block_names(model)
    found: dict[str, list[str]] = {}
    # Parameters of a module precede those of its submodules, which is correct for positions and class tokens.
    for name, _ in model.named_parameters():
        block = next((b for b in blocks if name.startswith(f"{b}.")), None)
        found.setdefault(name if block is None else f"{block}.", []).append(name)
    for key, names in found.items():
        yield names, key.endswith(".")


def _blocks(prefix: str, module: nn.Module, chains: set[nn.Module], parents: set[nn.Module]) -> Iterator[str]:
    for leaf, child in module.named_children():
        name = f"{prefix}.{leaf}" if prefix else leaf
        if child in parents:
            yield from _blocks(name, child, chains, parents)
        elif module in chains and _has_weighted_parts(child):
            yield name


def _longest_container(model: nn.Module) -> list[str]:
    """Return the names of the items with weights in the container with the most such items."""
    named = {name: module for name, module in model.named_modules() if isinstance(module, CONTAINERS)}
    items = [[f"{n}.{leaf}".lstrip(".") for leaf, c in m.named_children() if _has_weights(c)] for n, m in named.items()]
    return max(items, key=len, default=[])


def _chains(model: nn.Module) -> set[nn.Module]:
    items = {
        module: [child for child in module.children() if _has_weighted_parts(child)]
        for module in model.modules()
        if _is_container(module)
    }
    chains = {container for container, found in items.items() if len(found) > 1}
    counted = Counter(type(item) for container in chains or items for item in items[container])
    kinds = {kind for kind, count in counted.items() if count > 1 or chains} - set(CONTAINERS)
    return chains | {container for container, found in items.items() if any(type(item) in kinds for item in found)}


def _is_container(module: nn.Module) -> bool:
    """Return whether a module is a container, or a custom module whose children all have the same type."""
    kinds = {type(child) for child in module.children()}
    return isinstance(module, CONTAINERS) or (len(kinds) == 1 and kinds.isdisjoint(CONTAINERS))


def _has_weighted_parts(module: nn.Module) -> bool:
    return any(_has_weights(child) for child in module.children())


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
