"""Processes that start an attempt of the same run at the same moment, over several rounds."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rank_script import RankArguments

from hsadml_dist.errors import RunLockedError
from hsadml_dist.run.attempts import current_holder, start_attempt
from hsadml_dist.run.folder import RunFolder

ROUNDS = 12


def wait_for_all(folder: Path, round_: int, world: int) -> None:
    """Wait until all processes are here."""
    (folder / f"round-{round_}-{os.getpid()}").touch()
    while len(list(folder.glob(f"round-{round_}-*"))) < world:
        time.sleep(0.0005)


def main(arguments: RankArguments) -> None:
    """Answer, for each round, with the attempt's number or the error; stay alive until all have tried."""
    answers: list[int | str] = []
    for round_ in range(ROUNDS):
        run = RunFolder(Path(arguments.case) / f"run-{round_}")
        wait_for_all(arguments.folder, round_, arguments.world)
        try:
            answers.append(start_attempt(run, current_holder(f"start-{arguments.rank}"), {}).number)
        except RunLockedError as fault:
            answers.append(str(fault))
    wait_for_all(arguments.folder, ROUNDS, arguments.world)
    arguments.save_result(answers)


if __name__ == "__main__":
    main(RankArguments.read())
