"""Saving beside the training: the state is copied to memory, and a thread writes the copy while the steps go on.

::

    step   step   copy   step   step   step   step     the training
                  `----> write, hash, commit, prune    the thread, at most one save at a time

The ranks' threads agree over a control group of their own, so their messages mix with no vote of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from hsadml_dist.checkpoint.layout import CheckpointName
from hsadml_dist.checkpoint.retention import prune_checkpoints
from hsadml_dist.checkpoint.save import FileEntries, rank_files, run_on_all_ranks, save_checkpoint
from hsadml_dist.checkpoint.tensor_files import TensorGroup, TrainingState, raw_array
from hsadml_dist.config.recipe import CheckpointConfig
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.run.folder import AttemptFolder, RunFolder


class HostCopy:
    """A copy of a state in this machine's memory, which the next copy is written over.

    Memory is taken once: pages that are new to the process cost more time than the copy itself. On a machine with a GPU
    it is pinned, so that the device writes into it directly.
    """

    def __init__(self) -> None:
        self._groups: dict[str, TensorGroup] = {}

    def take(self, state: TrainingState, *, first: bool) -> TrainingState:
        """Return a copy of what this rank writes of ``state``; it holds until the next call."""
        own = {file.partition(".")[0]: tensors for file, tensors in rank_files(state, first=first)}
        self._groups = {name: self._fitting(name, tensors) for name, tensors in own.items()}
        for name, tensors in own.items():
            for key, tensor in tensors.items():
                _copy(tensor.detach(), self._groups[name][key])
        for device in {tensor.device for tensor in _tensors(own) if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return replace(state, groups=self._groups)

    def _fitting(self, name: str, tensors: TensorGroup) -> TensorGroup:
        held = self._groups.get(name, {})
        return {key: _buffer_for(tensor, held.get(key)) for key, tensor in tensors.items()}


class CheckpointSaver:
    """Writes one attempt's checkpoints, in the background or in the foreground; one for each rank.

    Attributes:
        newest: The step of the last save that was begun; 0: none was.
    """

    def __init__(
        self,
        run: RunFolder,
        attempt: AttemptFolder,
        comm: Comm,
        config: CheckpointConfig,
        committed: Callable[[CheckpointName], None],
    ) -> None:
        """Prepare; to be called by all ranks.

        Args:
            run: The run folder, the same one for all ranks.
            attempt: The attempt that writes.
            comm: The ranks; the saves agree over a group of their own.
            config: Whether saves are in the background, and which checkpoints are kept.
            committed: Called on rank 0 with the name of each checkpoint that is there from now on; in the background
                by the saving thread.
        """
        self._run, self._attempt, self._config, self._committed = run, attempt, config, committed
        self._comm = comm.new_control_group()
        self._copy = HostCopy()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self.last_step = 0

    @property
    def failed(self) -> bool:
        """Whether the save under way has ended badly on this rank; :meth:`finish` says on all ranks why."""
        save = self._under_way
        return save is not None and save.done() and save.exception() is not None

    def save_async(self, state: TrainingState) -> None:
        """Save ``state`` in the background, if the settings allow it; to be called by all ranks.

        Returns as soon as the state is copied; the training may then change it.

        Raises:
            HsadmlError: As :meth:`save`, also of the save before this one, which is waited for.
        """
        if not self._config.background:
            self.save(state)
            return
        self.wait()
        self.last_step = state.progress.step
        copied = self._copy.take(state, first=self._comm.topology.is_rank_zero)
        self._under_way = self._thread.submit(self._write, copied)

    def save(self, state: TrainingState) -> None:
        """Save ``state`` and return when it is done; to be called by all ranks.

        Raises:
            HsadmlError: What failed on one rank, on all of them; see :func:`save_checkpoint`.
        """
        self.wait()
        self.last_step = state.progress.step
        self._write(state)

    def wait(self) -> None:
        """Wait for the save under way, if there is one; to be called by all ranks.

        Raises:
            HsadmlError: What failed on one rank, on all of them.
        """
        save, self._under_way = self._under_way, None
        if save is not None:
            save.result()

    def _write(self, state: TrainingState) -> None:
        name = save_checkpoint(self._run, self._attempt, state, self._comm)
        run_on_all_ranks(self._comm, self._run.checkpoints / str(name), lambda: self._settle(name))

    def _settle(self, name: CheckpointName) -> FileEntries:
        if self._comm.topology.is_rank_zero:
            self._committed(name)
            prune_checkpoints(self._run, self._attempt, self._config.keep, self._config.keep_every)
        return {}


def _buffer_for(tensor: torch.Tensor, held: torch.Tensor | None) -> torch.Tensor:
    """Return host memory of the tensor's kind and memory layout: ``held`` if it is of that kind already."""
    if held is not None and (held.shape, held.dtype, held.stride()) == (tensor.shape, tensor.dtype, tensor.stride()):
        return held
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)


def _copy(tensor: torch.Tensor, target: torch.Tensor) -> None:
    if tensor.is_cuda:
        target.copy_(tensor, non_blocking=True)
    else:
        # By this thread alone: on a busy machine torch's threads wait for one another ten times as long as this takes.
        np.copyto(raw_array(target), raw_array(tensor))


def _tensors(groups: Mapping[str, TensorGroup]) -> Iterator[torch.Tensor]:
    return (tensor for group in groups.values() for tensor in group.values())
