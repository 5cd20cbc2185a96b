"""One rank of a process group over gloo: rank 0 picks a free port and publishes it in a shared file."""

from __future__ import annotations

import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main(shared: Path) -> None:
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    patience = timedelta(seconds=60)
    torch.set_num_threads(1)
    if rank == 0:
        store = dist.TCPStore("0.0.0.0", 0, size, is_master=True, timeout=patience, wait_for_workers=False)
        temporary = shared.with_suffix(".new")
        temporary.write_text(f"{socket.gethostname()} {store.port}")
        temporary.replace(shared)
    else:
        end = time.monotonic() + 60
        while not shared.exists() and time.monotonic() < end:
            time.sleep(0.02)
        host, port = shared.read_text().split()
        store = dist.TCPStore(host, int(port), size, is_master=False, timeout=patience)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
    total = torch.tensor(float(rank))
    dist.all_reduce(total)
    sys.stdout.write(f"{rank}:{total.item()}\n")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    # gloo's threads now and then abort at interpreter exit.
    os._exit(0)


main(Path(sys.argv[1]))
