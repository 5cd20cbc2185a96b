"""Several faults of ``make chaos`` in one training; see ``tests/chaos``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.baseline_runs import Workspace
from tests.chaos.damaged_files import FIRST_STOP, damaged_newest, flip
from tests.chaos.fault_sequence import new_sequence
from tests.chaos.signal_faults import killed_in_a_save, second_signal_while_stopping


@pytest.mark.soak
def test_training_with_repeated_faults_equals_baseline(shards: Path, tmp_path: Path) -> None:
    trip = new_sequence(Workspace(folder=tmp_path, shards=shards), random.Random(0), 2, 1)
    killed_in_a_save(trip, "background", "checkpoint.background=true")
    second_signal_while_stopping(trip)
    trip.stop(FIRST_STOP)
    with trip.fault("bit-flipped checkpoint file") as entry:
        damaged_newest(trip, entry, flip)
    faults = list(trip.finish())
    assert len(faults) == 3
    assert [fault.detail for fault in faults if fault.outcome != "survived"] == []
