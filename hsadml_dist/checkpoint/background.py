"""Background saves: copy the state to host memory, and write the copy in a thread while training continues.

::

    step   step   copy   step   step   step   step     the training
                  `----> write, hash, commit, prune    the thread, at most one save at a time

The ranks' threads communicate over a control group of their own, so that their messages do not mix with those of the
training.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from hsadml_dist.checkpoint.layout import CheckpointName
from hsadml_dist.checkpoint.save import FileEntries, prune_checkpoints, rank_files, run_on_all_ranks, save_checkpoint
from hsadml_dist.checkpoint.tensor_files import TensorGroup, TrainingState, raw_array
from hsadml_dist.config.recipe import CheckpointConfig
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.run.folder import AttemptFolder, RunFolder


class HostCopy:
    """A copy of a training state in host memory, reused for the next copy.

    The memory is allocated once, because pages that are new to the process cost more time than the copy itself. On a
    machine with a GPU it is pinned, so that the device writes into it directly.
    """

    def __init__(self) -> None:
        self._groups: dict[str, TensorGroup] = {}

    def take(self, state: TrainingState, *, first: bool) -> TrainingState:
        """Return a copy of what this rank writes of ``state``; it is valid until the next call."""
        own = {file.partition(".")[0]: tensors for file, tensors in rank_files(state, first=first)}
        old = self._groups
        self._groups = {
            name: {key: _host_buffer(tensor, old.get(name, {}).get(key)) for key, tensor in tensors.items()}
            for name, tensors in own.items()
        }
        for name, tensors in own.items():
            for key, tensor in tensors.items():
                _copy(tensor.detach(), self._groups[name][key])
        for device in {tensor.device for tensors in own.values() for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return replace(state, groups=self._groups)


class CheckpointSaver:
    """Writes an attempt's checkpoints, in the background or in the foreground; one instance per rank.

    Attributes:
        last_step: Step of the last save that was started; 0 before the first.
    """

    def __init__(
        self,
        run: RunFolder,
        attempt: AttemptFolder,
        comm: Comm,
        config: CheckpointConfig,
        on_saved: Callable[[CheckpointName], None],
    ) -> None:
        """Create a saver. Collective: every rank must call it.

        Args:
            run: The run folder, the same on all ranks.
            comm: The ranks; the saves use a group of their own.
            config: Enables background saves, and selects the checkpoints to keep.
            on_saved: Called on rank 0 with the name of each committed checkpoint; for a background save in the saving
                thread.
        """
        self._run, self._attempt, self._config, self._on_saved = run, attempt, config, on_saved
        self._comm = comm.new_control_group()
        self._copy = HostCopy()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.last_step = 0

    @property
    def failed(self) -> bool:
        """True if the pending save has failed on this rank; :meth:`wait` raises the error on all ranks."""
        save = self._pending
        return save is not None and save.done() and save.exception() is not None

    def save_async(self, state: TrainingState) -> None:
        """Save ``state`` in the background if that is enabled, otherwise as :meth:`save` does.

        Returns as soon as the state is copied; the training may then change it. Collective: every rank must call it.

        Raises:
            HsadmlError: See :meth:`save`; also the error of the previous save, which is waited for.
        """
        if not self._config.background:
            self.save(state)
            return
        self.wait()
        self.last_step = state.progress.step
        copied = self._copy.take(state, first=self._comm.topology.is_rank_zero)
        self._pending = self._thread.submit(self._write, copied)

    def save(self, state: TrainingState) -> None:
        """Save ``state`` and return when it is committed. Collective: every rank must call it.

        Raises:
            HsadmlError: The error of any rank, on all ranks; see :func:`save_checkpoint`.
        """
        self.wait()
        self.last_step = state.progress.step
        self._write(state)

    def wait(self) -> None:
        """Wait for the pending save, if there is one. Collective: every rank must call it.

        Raises:
            HsadmlError: The error of any rank, on all ranks.
        """
        save, self._pending = self._pending, None
        if save is not None:
            save.result()

    def _write(self, state: TrainingState) -> None:
        name = save_checkpoint(self._run, self._attempt, state, self._comm)
        run_on_all_ranks(self._comm, self._run.checkpoints / str(name), lambda: self._complete(name))

    def _complete(self, name: CheckpointName) -> FileEntries:
        if self._comm.topology.is_rank_zero:
            self._on_saved(name)
            prune_checkpoints(self._run, self._attempt, self._config.keep, self._config.keep_every)
        return {}


def _host_buffer(tensor: torch.Tensor, existing: torch.Tensor | None) -> torch.Tensor:
    """Return host memory with the tensor's dtype, shape and memory layout: ``existing`` if it matches."""
    if existing is not None and (existing.shape, existing.dtype, existing.stride()) == (
        tensor.shape,
        tensor.dtype,
        tensor.stride(),
    ):
        return existing
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)


def _copy(tensor: torch.Tensor, target: torch.Tensor) -> None:
    if tensor.is_cuda:
        target.copy_(tensor, non_blocking=True)
    else:
        # On this thread alone: on a busy machine, torch's threads wait for one another ten times as long as this takes.
        np.copyto(raw_array(target), raw_array(tensor))
