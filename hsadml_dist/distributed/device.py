"""The device of a rank: which GPU it is, how its kernels compute, and that no other rank has it."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Sequence

import torch

from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import ConfigError, Fault

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACE = ":4096:8"
"""A workspace with which cuBLAS repeats its results; read when a process first uses the GPU."""


def local_device(topology: Topology) -> torch.device:
    """Return the GPU of this local rank, or the CPU if there is no GPU.

    A launcher may show a process only its own GPU; the number of the rank then counts from the first one again.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", topology.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def configure_kernels(device: torch.device, *, tf32: bool, deterministic: bool) -> None:
    """Choose for this process how kernels compute on a GPU; on the CPU nothing changes.

    PyTorch's own choice is TF32 for convolutions but not for matrix products, and kernels whose sums depend on timing.

    Args:
        device: The device of this rank.
        tf32: Compute fp32 products and convolutions as TF32 (10 bits of mantissa).
        deterministic: Use kernels that repeat their result bit for bit; operations that have none warn.
    """
    if device.type != "cuda":
        return
    # Not torch's newer fp32_precision: torch.compile fails on some releases once a program has set it.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False  # a choice by timing may differ between two starts
    if deterministic:
        os.environ.setdefault(CUBLAS_WORKSPACE, FIXED_WORKSPACE)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def gpu_name(device: torch.device) -> str | None:
    """Return a name of the GPU that is unique in the cluster, or None on a CPU."""
    if device.type != "cuda":
        return None
    return f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"


def check_one_rank_per_gpu(gpus: Sequence[str | None]) -> None:
    """Raise ConfigError if two ranks have the same GPU, with which NCCL cannot start.

    Args:
        gpus: The :func:`gpu_name` of every rank, in rank order.
    """
    ranks_by_gpu: dict[str, list[int]] = defaultdict(list)
    for rank, gpu in enumerate(gpus):
        if gpu is not None:
            ranks_by_gpu[gpu].append(rank)
    for gpu, ranks in ranks_by_gpu.items():
        if len(ranks) > 1:
            listed = ", ".join(map(str, ranks))
            problem = f"ranks {listed} have the same GPU ({gpu}); start at most one rank for each GPU of a node"
            raise ConfigError([Fault(where="start", key="ranks", problem=problem)])
