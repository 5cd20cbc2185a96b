"""Ranks that measure as those of the doctor's job do; the clock of rank 1 is two seconds ahead."""

from __future__ import annotations

import time
from dataclasses import asdict
from unittest import mock

from rank_script import RankArguments

from hsadml_dist.launch.doctor.probe_network import measure_group

AHEAD = 2.0


def main(arguments: RankArguments) -> None:
    """Answer with the group report."""
    clock = time.time
    with mock.patch("hsadml_dist.launch.doctor.probe_network.time.time", lambda: clock() + AHEAD * arguments.rank):
        arguments.save_result(asdict(measure_group(arguments.folder, arguments.topology)))


if __name__ == "__main__":
    main(RankArguments.read())
