"""Copying shards ahead of the training: one process a node, in the order in which the node will need them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from hsadml_dist.data.index import ShardFile, ShardIndex
from hsadml_dist.data.order import Order
from hsadml_dist.data.shard_cache import ShardCache
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import DataError
from hsadml_dist.process import setup_helper_process

PAUSE_SECONDS = 0.05
"""How often a rank that waits for a shard looks whether it was asked to stop."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardSchedule:
    """Which shards a training reads, and when.

    Attributes:
        index: The shards' index.
        positions: The training samples' positions in it.
        order: Which samples each step takes.
        topology: This rank's place.
    """

    index: ShardIndex
    positions: Sequence[int]
    order: Order
    topology: Topology

    def step_shards(self, step: int) -> list[ShardFile]:
        """Return the shards, each once, of this rank's part of a step."""
        return self._files(step, self.topology.rank_range(self.order.global_batch))

    def node_shards(self, first: int, last: int) -> Iterator[ShardFile]:
        """Yield the shards of steps ``first`` to ``last`` that the node's ranks read, each once, first needed first."""
        seen: set[str] = set()
        every = len({self.index.samples[position].shard for position in self.positions})
        for step in range(first, last + 1):
            for file in self._files(step, self._part_of_node()):
                if file.name not in seen:
                    seen.add(file.name)
                    yield file
            if len(seen) == every:
                return

    def training_shards(self, steps: int) -> list[ShardFile]:
        """Return the shards of a training of ``steps`` steps, on all nodes together."""
        if self.order.global_batch * steps >= self.order.count:
            shards = sorted({self._shard(place) for place in range(self.order.count)})
            return [self.index.shards[shard] for shard in shards]
        batch = range(self.order.global_batch)
        files = {file.name: file for step in range(1, steps + 1) for file in self._files(step, batch)}
        return list(files.values())

    def _part_of_node(self) -> range:
        """Return the tickets of the ranks of this node, which have consecutive numbers."""
        mine, batch = self.topology, self.order.global_batch
        low = mine.rank - mine.local_rank
        high = min(low + mine.local_world_size, mine.world_size)
        return range(batch * low // mine.world_size, batch * high // mine.world_size)

    def _files(self, step: int, part: range) -> list[ShardFile]:
        tickets = self.order.sample_refs(step)[part.start : part.stop]
        return [self.index.shards[shard] for shard in dict.fromkeys(self._shard(place) for _, place in tickets)]

    def _shard(self, place: int) -> int:
        return self.index.samples[self.positions[place]].shard


class ShardPrefetcher:
    """Brings shards to the node before they are needed.

    On the node's first rank a process is forked at once, to wait for :meth:`start`; so none may be made after a
    thread, process group or device context exists. Like a loader worker it ignores notices and dies with its parent.

    Attributes:
        pid: The process, or None.
    """

    def __init__(self, stage: ShardCache, need: ShardSchedule) -> None:
        self._stage, self._need = stage, need
        self.pid: int | None = None
        self._orders = -1
        if need.topology.local_rank == 0:
            self._fork()

    def start(self, first: int, last: int) -> None:
        """Begin to copy what steps ``first`` to ``last`` need, both included."""
        if self._orders >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._orders, f"{first} {last}\n".encode())
            self._hang_up()

    def wait_for_step(self, step: int, interrupted: Callable[[], bool]) -> bool:
        """Return True once this rank's shards of ``step`` are there, False if ``interrupted`` became true before.

        For a rank that reads by itself, since neither a copy nor a download can be asked to stop.

        Raises:
            DataError: A shard cannot be brought.
        """
        missing = [file for file in self._need.step_shards(step) if not self._stage.has(file)]
        return not missing or _wait(functools.partial(self._fetch, missing), interrupted)

    def close(self) -> None:
        """Kill the process, whatever it waits for."""
        self._hang_up()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = None

    def _fetch(self, files: Sequence[ShardFile]) -> None:
        for file in files:
            self._stage.fetch(file)

    def _fork(self) -> None:
        listening, self._orders = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(self._orders)
            _serve(listening, parent, self._stage, self._need)
        os.close(listening)
        self.pid = pid

    def _hang_up(self) -> None:
        if self._orders >= 0:
            os.close(self._orders)
            self._orders = -1


def _serve(listening: int, parent: int, stage: ShardCache, need: ShardSchedule) -> NoReturn:
    """Do the process's whole work; it never returns into what its parent was doing."""
    try:
        setup_helper_process()
        if os.getppid() == parent:
            _copy_as_told(listening, stage, need)
    except DataError as fault:
        # Whoever needs the shard meets the same fault and ends the training with it.
        log.warning("not copied ahead: %s", fault)
    except BaseException:  # a traceback, and no way back
        log.exception("copying ahead ended")
    finally:
        os._exit(0)


def _copy_as_told(listening: int, stage: ShardCache, need: ShardSchedule) -> None:
    with open(listening, encoding="ascii") as orders:
        words = orders.readline().split()
    if words:
        first, last = map(int, words)
        for file in need.node_shards(first, last):
            stage.fetch(file)


def _wait(work: Callable[[], None], interrupted: Callable[[], bool]) -> bool:
    faults: list[DataError] = []

    def do() -> None:
        try:
            work()
        except DataError as fault:
            faults.append(fault)

    thread = threading.Thread(target=do, name="staging", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(PAUSE_SECONDS)
        if thread.is_alive() and interrupted():
            return False
    if faults:
        raise faults[0]
    return True
