"""DeepSpeed options: those of a user's JSON file merged with those that follow from the recipe.

Does not import DeepSpeed, so that a login node can check the file. The recipe alone determines what is learned; the
file may repeat its values (or write "auto"), but not contradict them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hsadml_dist.config.recipe import EngineConfig
from hsadml_dist.errors import ConfigError, Fault, did_you_mean, os_error_reason

ZERO = "zero_optimization"
AUTO = "auto"
BUCKET = 10_000_000
"""Elements of a bucket: 40 MB, similar to DDP's; DeepSpeed's default takes 2 GB per buffer."""
DEFAULTS: dict[str, Any] = {
    f"{ZERO}.reduce_bucket_size": BUCKET,
    f"{ZERO}.allgather_bucket_size": BUCKET,
    f"{ZERO}.stage3_prefetch_bucket_size": BUCKET,
    # PyTorch's own optimisers, as under every engine.
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    # It would replace PyTorch's linear function in the whole process.
    f"{ZERO}.memory_efficient_linear": False,
}

FREE: Mapping[str, type] = {
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "comms_logger.enabled": bool,
    "comms_logger.verbose": bool,
    "comms_logger.prof_all": bool,
    "comms_logger.debug": bool,
    "flops_profiler.enabled": bool,
    "flops_profiler.profile_step": int,
    "flops_profiler.module_depth": int,
    "flops_profiler.top_modules": int,
    "flops_profiler.detailed": bool,
    "flops_profiler.output_file": str,
    f"{ZERO}.contiguous_gradients": bool,
    f"{ZERO}.overlap_comm": bool,
    f"{ZERO}.reduce_scatter": bool,
    f"{ZERO}.allgather_partitions": bool,
    f"{ZERO}.round_robin_gradients": bool,
    f"{ZERO}.reduce_bucket_size": int,
    f"{ZERO}.allgather_bucket_size": int,
    f"{ZERO}.sub_group_size": int,
    f"{ZERO}.offload_optimizer.pin_memory": bool,
    f"{ZERO}.stage3_prefetch_bucket_size": int,
    f"{ZERO}.stage3_param_persistence_threshold": int,
    f"{ZERO}.stage3_max_live_parameters": int,
    f"{ZERO}.stage3_max_reuse_distance": int,
    f"{ZERO}.stage3_module_granularity_threshold": int,
}
"""Options that only the file sets: how the work is done, not what is computed."""

LEAST: Mapping[str, int] = {
    **dict.fromkeys(("steps_per_print", "flops_profiler.profile_step", "flops_profiler.top_modules"), 1),
    **dict.fromkeys(
        (f"{ZERO}.{name}" for name in ("reduce_bucket_size", "allgather_bucket_size", "sub_group_size")), 1
    ),
    "flops_profiler.module_depth": -1,
}
"""The smallest allowed numbers, where that is not 0."""

REFUSED: Mapping[str, str] = {
    "optimizer": "section optim of the recipe sets the optimiser, under every engine",
    "scheduler": "section optim of the recipe sets the schedule, under every engine",
    "bf16": "engine.precision sets it: bf16 is autocast with fp32 weights, under every engine",
    "fp16": "engine.precision sets it; fp16 with its loss scale is not supported, bf16 is",
    "amp": "engine.precision sets it",
    "torch_autocast": "engine.precision sets it",
    "data_types": "gradients are reduced and summed in fp32",
    "communication_data_type": "gradients are reduced in fp32",
    "checkpoint": "section checkpoint of the recipe sets it",
    "zero_allow_untested_optimizer": "it is always on",
    f"{ZERO}.offload_param": "weights are not offloaded; stage 3 partitions them among the ranks",
    f"{ZERO}.cpu_offload": "engine.offload_optimizer sets it",
}
"""Options that are set elsewhere."""


def build_deepspeed_options(engine: EngineConfig, global_batch: int, world_size: int) -> dict[str, Any]:
    """Return all options for DeepSpeed: those of the file and those of the recipe.

    Raises:
        ConfigError: The file cannot be read, has an unknown key, or contradicts the recipe.
    """
    given = _read_file(engine.deepspeed_config)
    derived = _derived(engine, global_batch, world_size)
    problems = {key: _problem(key, value, derived) for key, value in given.items()}
    where = str(engine.deepspeed_config)
    faults = [Fault(where=where, key=key, problem=text) for key, text in problems.items() if text is not None]
    if faults:
        raise ConfigError(faults)
    free = {key: value for key, value in given.items() if key in FREE}
    # DeepSpeed computes the batch from the other two, which may be rounded here: a rank's part may be cut unevenly.
    del derived["train_batch_size"]
    return _nested(DEFAULTS | free | {key: value for key, (value, _) in derived.items()})


def _derived(engine: EngineConfig, global_batch: int, world_size: int) -> dict[str, tuple[Any, str]]:
    """Return the options that follow from the recipe, by dotted key, and the settings behind each."""
    micro_batch = max(1, global_batch // (world_size * engine.accumulate))
    micro_batch_source = "train.global_batch, engine.accumulate and the number of ranks"
    device = "cpu" if engine.offload_optimizer else "none"
    return {
        "train_batch_size": (global_batch, "train.global_batch"),
        "train_micro_batch_size_per_gpu": (micro_batch, micro_batch_source),
        "gradient_accumulation_steps": (engine.accumulate, "engine.accumulate"),
        # Without this option DeepSpeed would clip at 1.
        "gradient_clipping": (engine.clip_norm or 0.0, "engine.clip_norm"),
        f"{ZERO}.stage": (engine.zero_stage, "engine.zero_stage"),
        f"{ZERO}.offload_optimizer.device": (device, "engine.offload_optimizer"),
    }


def _read_file(path: str | None) -> dict[str, Any]:
    """Return the options of the file by dotted key.

    Raises:
        ConfigError: It cannot be read, is not a JSON object, or has a key twice.
    """
    if path is None:
        return {}
    try:
        tree = json.loads(Path(path).read_text(), object_pairs_hook=_unique)
    except OSError as error:
        raise _file_error(path, f"cannot be read: {os_error_reason(error)}") from error
    except ValueError as error:
        raise _file_error(path, f"is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise _file_error(path, "is not a JSON object: {...} is expected")
    return dict(_flat(tree))


def _file_error(path: str, problem: str) -> ConfigError:
    return ConfigError([Fault(where="recipe", key="engine.deepspeed_config", problem=f"{path!r} {problem}")])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ValueError(f"the key {duplicate!r} is given twice")
    return dict(pairs)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, dict) and key in _SECTIONS:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _problem(key: str, value: Any, derived: Mapping[str, tuple[Any, str]]) -> str | None:
    if key in REFUSED:
        return f"must be left out: {REFUSED[key]}"
    if key in derived:
        wanted, source = derived[key]
        if value == AUTO or (value == wanted and isinstance(value, bool) == isinstance(wanted, bool)):
            return None
        return f"{value!r} contradicts {wanted!r}, which follows from {source}; leave it out, or write {AUTO!r}"
    if key not in FREE:
        allowed = sorted([*FREE, *derived])
        return f"is unknown{did_you_mean(key, allowed)}; allowed: {', '.join(_siblings(key, allowed))}"
    kind = FREE[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return f"{value!r} must be {_KINDS[kind]}"
    least = LEAST.get(key, 0)
    return f"{value!r} must be at least {least}" if isinstance(value, int) and value < least else None


def _siblings(key: str, allowed: list[str]) -> list[str]:
    """Return the allowed keys of the section of ``key``."""
    section = key.rpartition(".")[0] + "."
    inside = [name for name in allowed if name.startswith(section)]
    return inside or sorted({name.partition(".")[0] for name in allowed})


_SECTIONS = {key[:place] for key in FREE for place, letter in enumerate(key) if letter == "."}
_KINDS: Mapping[type, str] = {bool: "true or false", int: "an integer", str: "a string"}
