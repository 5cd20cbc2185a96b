"""Session fixtures: ranks as real processes, and a small folder of shards."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: on a busy machine, two threads that wait for each other are 50 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Settings of the caller's terminal, of a surrounding job and of hsadml must not change what the tests see.
CALLER_SETTINGS = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "PYTHONPATH")
CALLER_PREFIXES = ("SLURM_", "SBATCH_", "SQUEUE_", "SALLOC_", "SRUN_", "SCANCEL_", "HSADML_")
for name in [name for name in os.environ if name in CALLER_SETTINGS or name.startswith(CALLER_PREFIXES)]:
    del os.environ[name]

# A shell's background job ignores Ctrl-C, and nohup SIGHUP. Trainings would inherit that and not see what tests send.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

HERE = Path(__file__).parent
SECONDS = 300

Ranks = Callable[..., list[Any]]
Train = Callable[..., None]
MONAI = ("hsadml_dist.data.transforms:load_monai",)


class RankForkServer:
    """The process that ranks are forked from; started by the first job."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, job: dict[str, Any]) -> list[int]:
        """Run a job; return the exit codes of its ranks. A hang fails the test by name."""
        process = self._process or self._start()
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            self.close()
            pytest.fail(f"{job['world']} ranks of {job['script']} hang: no answer within {SECONDS} s")
        return json.loads(process.stdout.readline())

    def close(self) -> None:
        """Kill the server and all running ranks."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "rank_fork_server.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self._process


@pytest.fixture(scope="session")
def fork_server() -> Iterator[RankForkServer]:
    """Provide the fork server of the session."""
    fork_server = RankForkServer()
    yield fork_server
    fork_server.close()


@pytest.fixture(scope="session")
def ranks(fork_server: RankForkServer, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Run a rank script in W processes and return each rank's result; see ``rank_script.py``."""
    import torch

    def run(
        script: str,
        world: int,
        case: str = "",
        *,
        folder: Path | None = None,
        preload: Sequence[str] = (),
        expect: int = 0,
    ) -> list[Any]:
        folder = folder or tmp_path_factory.mktemp("ranks")
        job = {"script": str(HERE / script), "folder": str(folder), "world": world, "case": case, "preload": preload}
        codes = fork_server.run(job)
        stderr = "\n".join(path.read_text() for path in sorted(folder.glob("stderr-*")))
        assert codes == [expect] * world, stderr
        results = [folder / f"result-{rank}.pt" for rank in range(world)]
        return [torch.load(path, weights_only=False) for path in results if path.exists()]

    return run


@pytest.fixture(scope="session")
def train_to_the_end(ranks: Ranks) -> Train:
    """Train or resume a run to its last step as ``hsadml train`` does, in forked ranks that need not import torch."""
    from hsadml_dist.errors import ExitCode
    from hsadml_dist.jobs.prepare import prepare_run

    def train(run: Path, *overrides: str, nproc: int, recipe: str = "demo") -> None:
        folder = prepare_run(recipe, overrides, run, False, nproc)
        codes = ranks("training_ranks.py", nproc, f"{folder} {uuid.uuid4().hex}", preload=MONAI)
        assert codes == [ExitCode.SUCCESS] * nproc

    return train


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 9 generated patients at 64 pixels in 3 folds, several samples per shard; read-only."""
    from hsadml_dist.shards.build import BuildOptions, build_shards
    from hsadml_dist.shards.pseudonyms import load_or_create_key
    from hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource

    folder = tmp_path_factory.mktemp("tiny")
    options = BuildOptions(folds=3, samples_per_shard=8, size=64)
    source = PhantomSource(patients=9, seed=0, size=64)
    build_shards(source, folder / "shards", options, load_or_create_key(folder / "id.key"), 1, lambda done, total: None)
    return folder / "shards"


@pytest.fixture
def recipe(tiny_shards: Path) -> Any:
    """Settings of a training of five steps that takes seconds, without an evaluation."""
    from hsadml_dist.config import Recipe
    from hsadml_dist.config.recipe import (
        CheckpointConfig,
        DataConfig,
        EvaluationConfig,
        ModelConfig,
        RunConfig,
        TrainConfig,
    )

    return Recipe(
        data=DataConfig(shards=str(tiny_shards), fold=0, image_size=16, transforms=()),
        model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
        train=TrainConfig(steps=5, global_batch=6),
        checkpoint=CheckpointConfig(every=2),
        run=RunConfig(tensorboard=False),
        evaluation=EvaluationConfig(at_end=False),
    )


@pytest.fixture
def as_before() -> Iterator[None]:
    """Restore this process's thread count and logging, which a training changes."""
    import torch

    threads, handlers, level = torch.get_num_threads(), logging.root.handlers[:], logging.root.level
    yield
    torch.set_num_threads(threads)
    for handler in set(logging.root.handlers) - set(handlers):
        handler.close()
        logging.root.removeHandler(handler)
    logging.root.setLevel(level)
