"""Search neighbours on one rank; run as ``python knn_ranks.py FOLDER WORLD RANK``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from rank_meeting import meet

from hsadml_dist.evaluation.knn import nearest_distributed


def main(folder: Path, world: int, rank: int) -> None:
    """Search with uneven parts of the rows; of several ranks the last holds no gallery rows."""
    comm = meet(folder / "address.json", world, rank)
    rows = torch.load(folder / "rows.pt")
    queries = rows["queries"][slice_of(len(rows["queries"]), rank, world)]
    holders = max(1, world - 1)
    gallery = rows["gallery"][slice_of(len(rows["gallery"]), rank, holders) if rank < holders else slice(0)]
    cosines, positions = nearest_distributed(queries, gallery, comm, k=4, block=10)
    answer = {"cosines": cosines.tolist(), "positions": positions.tolist()}
    (folder / f"{rank}.json").write_text(json.dumps(answer))
    comm.close()


def slice_of(count: int, index: int, parts: int) -> slice:
    """Return the slice of part ``index`` of an uneven split: part i gets i + 1 shares."""
    shares = parts * (parts + 1) // 2
    return slice(count * (index * (index + 1) // 2) // shares, count * ((index + 1) * (index + 2) // 2) // shares)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    # gloo threads sometimes abort a normal interpreter exit.
    sys.stdout.flush()
    os._exit(0)
