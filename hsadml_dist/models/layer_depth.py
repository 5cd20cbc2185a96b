"""How deep each weight of a network lies, told from how the network is put together.

A chain is a container with at least two items that have weights in parts of their own (a convolution has none, a
residual block has). The items that hold no further chain are the blocks, in the order in which they were registered; a
container of one such item counts where items of its kind form chains elsewhere, or stand alone in several containers.
A net without any chain has the items of its longest container as blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter by name.

    0: patches, positions, stem, all before the first block; 1 to n: the blocks, with what stands between a block and
    the next; n + 1: all after the last block, the neck included. So Bao et al., ICLR 2022 (BEiT) count them.
    """
    order = list(_ordered(model))
    blocks = [place for place, (_, is_block) in enumerate(order) if is_block]
    depths: dict[str, int] = {}
    reached = 0
    for place, (names, is_block) in enumerate(order):
        reached += is_block
        depth = reached if not blocks or place <= blocks[-1] else reached + 1
        depths |= dict.fromkeys(names, depth)
    return {name: depths[name] for name, _ in model.named_parameters()}


def block_names(model: nn.Module) -> list[str]:
    """Return the names of a network's blocks, in their order."""
    chains = _chains(model)
    return [*_blocks("", model, chains, _holders(model, chains))] if chains else _longest(model)


def _ordered(model: nn.Module) -> Iterator[tuple[list[str], bool]]:
    """Yield groups of parameters in the order of registration, and whether each is a block."""
    blocks = block_names(model)
    found: dict[str, list[str]] = {}
    # Parameters of a module itself come before those of its parts, as positions and class tokens should.
    for name, _ in model.named_parameters():
        block = next((b for b in blocks if name.startswith(f"{b}.")), None)
        found.setdefault(name if block is None else f"{block}.", []).append(name)
    for key, names in found.items():
        yield names, key.endswith(".")


def _blocks(prefix: str, module: nn.Module, chains: set[nn.Module], holders: set[nn.Module]) -> Iterator[str]:
    for leaf, child in module.named_children():
        name = f"{prefix}.{leaf}" if prefix else leaf
        if child in holders:
            yield from _blocks(name, child, chains, holders)
        elif module in chains and _has_weighty_parts(child):
            yield name


def _longest(model: nn.Module) -> list[str]:
    """Return the names of the items with weights of the container that has most of them."""
    named = {name: module for name, module in model.named_modules() if isinstance(module, CONTAINERS)}
    items = [[f"{n}.{leaf}".lstrip(".") for leaf, c in m.named_children() if _has_weights(c)] for n, m in named.items()]
    return max(items, key=len, default=[])


def _chains(model: nn.Module) -> set[nn.Module]:
    items = {module: _items(module) for module in model.modules() if _is_container(module)}
    long = {container for container, found in items.items() if len(found) > 1}
    counted = Counter(type(item) for container in long or items for item in items[container])
    kinds = {kind for kind, count in counted.items() if count > 1 or long} - set(CONTAINERS)
    return long | {container for container, found in items.items() if any(type(item) in kinds for item in found)}


def _is_container(module: nn.Module) -> bool:
    """Whether a module is a container, or a module of the net's own whose parts are all of one kind."""
    kinds = {type(child) for child in module.children()}
    return isinstance(module, CONTAINERS) or (len(kinds) == 1 and kinds.isdisjoint(CONTAINERS))


def _items(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if _has_weighty_parts(child)]


def _holders(model: nn.Module, chains: set[nn.Module]) -> set[nn.Module]:
    return {module for module in model.modules() if any(part in chains for part in module.modules())}


def _has_weighty_parts(module: nn.Module) -> bool:
    return any(_has_weights(child) for child in module.children())


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
