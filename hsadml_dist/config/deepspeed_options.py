"""A user's DeepSpeed JSON: what it may set, what the recipe sets, and both merged.

Imports no DeepSpeed: a login node checks the file too. The recipe stays the one place of all that decides what is
learnt; the file may repeat it (or say "auto"), but not contradict it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hsadml_dist.config.recipe import Recipe
from hsadml_dist.errors import ConfigError, Fault, did_you_mean, os_error_reason

ZERO = "zero_optimization"
AUTO = "auto"
BUCKET = 10_000_000
"""Elements of a bucket: 40 MB, near DDP's; DeepSpeed's own default takes 2 GB a buffer."""

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
"""What the file alone decides: how the work is done, never what comes of it."""

REFUSED: Mapping[str, str] = {
    "optimizer": "the recipe's section optim is the optimiser, under every engine",
    "scheduler": "the recipe's section optim is the schedule, under every engine",
    "bf16": "engine.precision decides: bf16 is autocast with fp32 weights, under every engine",
    "fp16": "engine.precision decides, and fp16 with its loss scale is not supported; bf16 is",
    "amp": "engine.precision decides",
    "torch_autocast": "engine.precision decides",
    "data_types": "gradients are reduced and summed in fp32",
    "communication_data_type": "gradients are reduced in fp32",
    "checkpoint": "the recipe's section checkpoint decides",
    "zero_allow_untested_optimizer": "it is always on",
    f"{ZERO}.offload_param": "weights are not offloaded; stage 3 shares them out among the ranks",
    f"{ZERO}.cpu_offload": "engine.offload_optimizer decides",
}
"""What has its place elsewhere."""


def build_deepspeed_options(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """Return all settings for DeepSpeed: the file's and the recipe's.

    Raises:
        ConfigError: The file cannot be read, has an unknown key, or contradicts the recipe.
    """
    given = _given(recipe.engine.deepspeed_config)
    faults = list(_faults(given, recipe, world_size))
    if faults:
        raise ConfigError(faults)
    free = {key: value for key, value in given.items() if key in FREE}
    # DeepSpeed multiplies the batch from the other two, which here may be rounded: a share need not be cut evenly.
    decided = {key: value for key, value in _decided(recipe, world_size).items() if key != "train_batch_size"}
    return _nested(_defaults() | free | decided)


def _defaults() -> dict[str, Any]:
    buckets = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")
    return {f"{ZERO}.{name}": BUCKET for name in buckets} | {
        # PyTorch's own optimisers, as under every engine.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # It would replace PyTorch's linear function in the whole process.
        f"{ZERO}.memory_efficient_linear": False,
    }


def _decided(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """Return what the recipe sets, by dotted key."""
    engine, batch = recipe.engine, recipe.train.global_batch
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": max(1, batch // (world_size * engine.accumulate)),
        "gradient_accumulation_steps": engine.accumulate,
        # Left out, DeepSpeed would clip at 1.
        "gradient_clipping": engine.clip_norm or 0.0,
        f"{ZERO}.stage": engine.zero_stage,
        f"{ZERO}.offload_optimizer.device": "cpu" if engine.offload_optimizer else "none",
    }


SOURCES: Mapping[str, str] = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.global_batch, engine.accumulate and the number of ranks",
    "gradient_accumulation_steps": "engine.accumulate",
    "gradient_clipping": "engine.clip_norm",
    f"{ZERO}.stage": "engine.zero_stage",
    f"{ZERO}.offload_optimizer.device": "engine.offload_optimizer",
}
"""The recipe's setting behind each of those."""


def _given(path: str | None) -> dict[str, Any]:
    """Return the file's settings by dotted key.

    Raises:
        ConfigError: It cannot be read, is no JSON object, or names a key twice.
    """
    if path is None:
        return {}
    try:
        tree = json.loads(Path(path).read_text(), object_pairs_hook=_once_each)
    except OSError as fault:
        raise _unreadable(path, f"cannot be read: {os_error_reason(fault)}") from fault
    except ValueError as fault:
        raise _unreadable(path, f"is no JSON that can be read: {fault}") from fault
    if not isinstance(tree, dict):
        raise _unreadable(path, "holds no JSON object: {...} is asked for")
    return dict(_flat(tree))


def _unreadable(path: str, problem: str) -> ConfigError:
    return ConfigError([Fault(where="recipe", key="engine.deepspeed_config", problem=f"{path!r} {problem}")])


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the key {twice!r} is given twice")
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


def _faults(given: Mapping[str, Any], recipe: Recipe, world_size: int) -> Iterator[Fault]:
    decided = _decided(recipe, world_size)
    for key, value in given.items():
        problem = _problem(key, value, decided)
        if problem is not None:
            yield Fault(where=str(recipe.engine.deepspeed_config), key=key, problem=problem)


def _problem(key: str, value: Any, decided: Mapping[str, Any]) -> str | None:
    if key in REFUSED:
        return f"must be left out: {REFUSED[key]}"
    if key in decided:
        return _clash(key, value, decided[key])
    if key not in FREE:
        allowed = sorted([*FREE, *decided])
        return f"is unknown here{did_you_mean(key, allowed)}; allowed: {', '.join(_beside(key, allowed))}"
    kind = FREE[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return f"{value!r} must be {_KINDS[kind]}"
    return f"{value!r} must be at least 0" if isinstance(value, int) and value < 0 else None


def _clash(key: str, value: Any, decided: Any) -> str | None:
    if value == AUTO or (value == decided and isinstance(value, bool) == isinstance(decided, bool)):
        return None
    return f"{value!r} clashes with {decided!r}, which follows from {SOURCES[key]}; leave it out, or say {AUTO!r}"


def _beside(key: str, allowed: list[str]) -> list[str]:
    """Return the allowed keys of the section that ``key`` stands in."""
    section = key.rpartition(".")[0] + "."
    inside = [name for name in allowed if name.startswith(section)]
    return inside or sorted({name.partition(".")[0] for name in allowed})


_SECTIONS = {key[:place] for key in (*FREE, *SOURCES) for place, letter in enumerate(key) if letter == "."}
_KINDS: Mapping[type, str] = {bool: "true or false", int: "a whole number", str: "a text"}
