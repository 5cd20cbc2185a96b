"""Settings of the engine that runs a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step is carried out.

    Attributes:
        name: ddp: PyTorch's DistributedDataParallel; deepspeed: DeepSpeed with ZeRO.
        zero_stage: What DeepSpeed shares out among the ranks; 0: nothing, 1: the optimiser's moments, 2: the gradients
            too, 3: the weights too. Any stage goes on from any other's checkpoint.
        offload_optimizer: Whether the shared-out moments, and the step with them, are on the CPU.
        deepspeed_config: A DeepSpeed JSON file for what the recipe does not decide, such as bucket sizes.
        precision: fp32; bf16: autocast with fp32 weights; fp64: for verification.
        accumulate: Parts into which a rank's share of the batch is cut to save memory.
        clip_norm: Largest gradient norm, of backbone and of centres separately; none: no clipping.
        static_graph: Tell DistributedDataParallel that each step has the same graph; lets parameters stay unused.
        compile: Let torch.compile make the backbone's passes; takes tens of seconds at each start. ddp only.
        activation_checkpointing: Keep no activations inside the backbone's blocks but compute them once more in the
            backward pass: less memory for about a third more time.
        threads: CPU threads of a rank; none: the processors at hand shared among the ranks of a node.
    """

    name: Literal["ddp", "deepspeed"] = setting("ddp", on_resume="movable")
    zero_stage: int = setting(2, on_resume="movable", ge=0, le=3)
    offload_optimizer: bool = setting(False, on_resume="movable")
    deepspeed_config: str | None = setting(None, on_resume="movable")
    precision: Literal["fp32", "bf16", "fp64"] = setting("fp32")
    accumulate: int = setting(1, on_resume="movable", ge=1)
    clip_norm: float | None = setting(5.0, gt=0)
    static_graph: bool = setting(False, on_resume="movable")
    compile: bool = setting(False, on_resume="movable")
    activation_checkpointing: bool = setting(False, on_resume="movable")
    threads: int | None = setting(None, on_resume="movable", ge=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted key, problem) for settings that are right alone but not together."""
        if self.name != "deepspeed":
            for key, given in (
                ("offload_optimizer", self.offload_optimizer),
                ("deepspeed_config", self.deepspeed_config),
            ):
                if given:
                    yield f"engine.{key}", f"{given!r} is for engine.name 'deepspeed', which is {self.name!r}"
            return
        for key, given in (("static_graph", self.static_graph), ("compile", self.compile)):
            if given:
                yield f"engine.{key}", f"true is for engine.name 'ddp', which is {self.name!r}"
        if self.precision == "fp64":
            yield "engine.precision", "'fp64' is beyond DeepSpeed, which keeps its weights in fp32; allowed: fp32, bf16"
        if self.offload_optimizer and self.zero_stage == 0:
            yield "engine.offload_optimizer", "true needs moments that are shared out: engine.zero_stage 1, 2 or 3"
