"""Train a prepared run as one rank of the fork server, in the environment that the launcher gives a rank."""

from __future__ import annotations

import os

from rank_script import RankArguments

from hsadml_dist.launch.rank import main

if __name__ == "__main__":
    arguments = RankArguments.read()
    run, launch = arguments.case.split(" ")
    os.environ |= {
        "RANK": str(arguments.rank),
        "WORLD_SIZE": str(arguments.world),
        "LOCAL_RANK": str(arguments.rank),
        "LOCAL_WORLD_SIZE": str(arguments.world),
        "HSADML_LAUNCH": launch,
    }
    arguments.save_result(main([run]))
