"""The device of a rank; what needs a GPU runs in ``make gpu``."""

import os

import pytest
import torch

from hsadml_dist.distributed.device import (
    CUBLAS_WORKSPACE,
    check_one_rank_per_gpu,
    configure_kernels,
    gpu_name,
    local_device,
)
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def kernel_settings(monkeypatch):
    """Return a function that reads the process's settings, which are restored at the end."""
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)

    def read() -> dict[str, object]:
        return {
            "matmul": torch.get_float32_matmul_precision(),
            "convolution": torch.backends.cudnn.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "warns only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
            "workspace": os.environ.get(CUBLAS_WORKSPACE),
        }

    before = read()
    yield read
    torch.set_float32_matmul_precision(before["matmul"])
    torch.backends.cudnn.allow_tf32 = before["convolution"]
    torch.backends.cudnn.benchmark = before["benchmark"]
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warns only"])


def test_local_device_without_a_gpu_is_the_cpu():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert local_device(Topology(local_rank=3)) == CPU


def test_configure_kernels_changes_nothing_on_a_cpu(kernel_settings):
    before = kernel_settings()
    configure_kernels(CPU, tf32=True, deterministic=True)
    assert kernel_settings() == before


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_configure_kernels_for_a_gpu(kernel_settings, tf32, deterministic):
    configure_kernels(GPU, tf32=tf32, deterministic=deterministic)
    assert kernel_settings() == {
        "matmul": "high" if tf32 else "highest",
        "convolution": tf32,
        "deterministic": deterministic,
        "warns only": True if deterministic else kernel_settings()["warns only"],
        "benchmark": False,
        "workspace": ":4096:8" if deterministic else None,
    }


def test_configure_kernels_keeps_the_workspace_of_the_user(kernel_settings, monkeypatch):
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":16:8")
    configure_kernels(GPU, tf32=False, deterministic=True)
    assert kernel_settings()["workspace"] == ":16:8"


def test_gpu_name_on_a_cpu_is_none():
    assert gpu_name(CPU) is None


@pytest.mark.parametrize("gpus", [[None, None], ["a 1", "a 2"], ["a 1", "b 1"], []])
def test_check_one_rank_per_gpu_accepts(gpus):
    check_one_rank_per_gpu(gpus)


def test_check_one_rank_per_gpu_names_the_ranks_that_share_one():
    with pytest.raises(ConfigError) as refused:
        check_one_rank_per_gpu(["a 1", "a 2", "b 1", "a 2"])
    (fault,) = refused.value.faults
    assert "1, 3" in fault.problem and "a 2" in fault.problem
