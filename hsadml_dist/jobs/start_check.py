"""Check what needs torch and MONAI in a recipe, before a job waits in a queue to find it: transforms and network.

The check runs in a process of its own, because whoever submits a job, or prints a recipe, works without torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from hsadml_dist.config.recipe import Recipe
from hsadml_dist.config.schema import iter_settings
from hsadml_dist.config.yaml_loader import LoadedRecipe, build_recipe
from hsadml_dist.errors import ConfigError, Fault
from hsadml_dist.models.registry import TIMM_PREFIX

PACKAGES = ("torch", "monai")


def check_start(loaded: LoadedRecipe) -> None:
    """Check transforms, frozen parts and the backbone's name as ranks do at their start, which takes seconds.

    Returns at once if the recipe sets none of them, and where torch and MONAI are not installed, as on a login node.
    A check that does not end normally, for instance for want of memory, finds nothing: the ranks repeat it.

    Raises:
        ConfigError: With all faults found.
    """
    recipe = loaded.recipe
    if not _has_own_parts(recipe) or not all(find_spec(package) for package in PACKAGES):
        return
    settings = {key: value for key, value, _ in iter_settings(recipe)}
    command = [sys.executable, "-P", "-m", __name__]
    done = subprocess.run(command, input=json.dumps(settings), capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.returncode == 0 else []
    if found:
        raise ConfigError(
            Fault(where=loaded.provenance[key], key=key, problem=problem)
            for key, problem in ((fault["key"], fault["problem"]) for fault in found)
        )


def _has_own_parts(recipe: Recipe) -> bool:
    model = recipe.model
    return bool(recipe.data.transforms or model.freeze or model.name.startswith(TIMM_PREFIX))


def find_faults(settings: dict[str, Any]) -> Iterator[Fault]:
    """Yield the faults of the settings of a recipe, given by dotted key."""
    recipe = build_recipe(settings)
    for check in (_check_transforms, _check_network):
        try:
            check(recipe)
        except ConfigError as error:
            yield from error.faults


def _check_transforms(recipe: Recipe) -> None:
    from hsadml_dist.data.loader import build_augmentation
    from hsadml_dist.data.transforms import Preprocessing

    Preprocessing(recipe.data.image_size)
    build_augmentation(recipe.data)


def _check_network(recipe: Recipe) -> None:
    import torch

    from hsadml_dist.model_factory import build_network

    try:
        with torch.device("meta"):  # no memory for weights
            build_network(recipe)
    except RuntimeError:  # networks that read values while they are built
        build_network(recipe)


if __name__ == "__main__":
    json.dump([asdict(fault) for fault in find_faults(json.load(sys.stdin))], sys.stdout)
