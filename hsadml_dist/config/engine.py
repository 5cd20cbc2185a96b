"""Settings of the engine that runs a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step is carried out.

    Attributes:
        name: ddp: PyTorch's DistributedDataParallel.
        precision: fp32; bf16: autocast with fp32 weights; fp64: for verification.
        accumulate: Parts into which a rank's share of the batch is cut to save memory.
        clip_norm: Largest gradient norm, of backbone and of centres separately; none: no clipping.
        threads: CPU threads of a rank; none: the processors at hand shared among the ranks of a node.
    """

    name: Literal["ddp"] = setting("ddp", key_class="movable")
    precision: Literal["fp32", "bf16", "fp64"] = setting("fp32")
    accumulate: int = setting(1, key_class="movable", least=1)
    clip_norm: float | None = setting(5.0, above=0)
    threads: int | None = setting(None, key_class="movable", least=1)
