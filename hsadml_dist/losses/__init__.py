"""Margin losses on the hypersphere. The loss modules are imported, with torch, when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsadml_dist.losses.modules import (
        AdaFace,
        ArcFace,
        CosFace,
        NormFace,
        SphereFace,
        SphereFace2,
        SphereFaceRv1,
        SphereFaceRv2,
        exclude_sharded_centres,
    )

__all__ = [
    "AdaFace",
    "ArcFace",
    "CosFace",
    "NormFace",
    "SphereFace",
    "SphereFace2",
    "SphereFaceRv1",
    "SphereFaceRv2",
    "exclude_sharded_centres",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("hsadml_dist.losses.modules"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
