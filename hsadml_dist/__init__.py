"""Hyperspherical deep metric learning for brain MRI on any number of nodes.

The public API is what this module exports; it is imported on first use, so that ``import hsadml_dist`` needs no torch::

    import hsadml_dist as hsadml

    result = hsadml.train("demo", {"train.steps": 100}, run="runs/first")
    hsadml.evaluate(result.run)["knn_accuracy"]
    hsadml.load(result.run).predict(["slice.png"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsadml_dist import losses
    from hsadml_dist.data.shard_dataset import ShardDataset
    from hsadml_dist.launch.api import evaluate, load, train

    __version__: str

__all__ = ["ShardDataset", "__version__", "evaluate", "load", "losses", "train"]

_HOMES = {"ShardDataset": "data.shard_dataset", "evaluate": "launch.api", "load": "launch.api", "train": "launch.api"}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("hsadml_dist.losses")
    if name in _HOMES:
        return getattr(importlib.import_module(f"hsadml_dist.{_HOMES[name]}"), name)
    if name == "__version__":
        from hsadml_dist.run.code_snapshot import package_version

        return package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
