"""Read mutated text files and tars in every way that the package reads them, with a limit on memory.

Usage: ``python -m tests.file_fuzzer KIND COUNT SHARDS RUN``. Prints JSON. The folders of shards and of a finished run
are scratch copies: each case changes one of their files, and the intact content is put back before the next.
"""

import contextlib
import hashlib
import io
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hsadml_dist.checkpoint.load import find_damage, load_safetensors
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import INDEX_NAME, SAMPLES_NAME, load_index, table_digest
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.sample import SampleMeta
from hsadml_dist.errors import ConfigError, HsadmlError
from hsadml_dist.evaluation.result import read_predictions
from hsadml_dist.launch import cli
from hsadml_dist.shards.build_folder import BuildFolder
from hsadml_dist.shards.sources.figshare import parse_patient_table
from hsadml_dist.shards.sources.table import TableSource
from hsadml_dist.shards.verify import verify_shards
from hsadml_dist.slurm.profiles import load_profile
from tests.mutations import limit_memory, mutate_bytes, mutate_json, mutate_json_lines

INTERNAL_ERROR = 70
PROFILE = """# a site
account: mri
partition: gpu
time: "1:00:00"
setup: [module load cuda, source /opt/site.sh]
container: {kind: apptainer, image: /images/a.sif, mounts: ["/data:/data:ro"]}
env: {NCCL_DEBUG: WARN}
umask: "0027"
"""
TABLE = "file,class,person,exam,fold,plane\n" + "".join(f"{n}.png,{n % 3},p{n},e{n},{n % 2},axial\n" for n in range(9))
META = SampleMeta(
    key="0123456789abcdef",
    class_name="glioma",
    label=0,
    person="ab",
    exam=None,
    fold=1,
    author_fold=None,
    plane="axial",
    spacing_mm=(0.5, 0.5),
    shape=(64, 64),
    volume=(64, 64),
    origin=(0, 0),
).to_json()
PATIENTS = "index,person\n" + "".join(f"{n},p{n // 2}\n" for n in range(1, 12))

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """A file, how to mutate it, and how it is read."""

    path: Path
    read: Read
    mutate: Callable[[bytes, random.Random], bytes] | None = None
    after: Callable[[Path], None] = lambda path: None


def text_target(path: Path, text: str, read: Read) -> Target:
    path.write_text(text)
    return Target(path, read)


def call(*words: object) -> None:
    """Run a command; every end but that of a defect is right."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = cli.main([str(word) for word in words])
    assert code != INTERNAL_ERROR, errors.getvalue()


def read_shards(path: Path) -> None:
    """Verify a folder of shards, list it, and read its images."""
    index = load_index(path.parent)
    verify_shards(path.parent)
    reader = ShardReader(path.parent, index)
    for position, row in enumerate(index.samples[:12]):
        with contextlib.suppress(HsadmlError):
            reader.image(position)
        with contextlib.suppress(HsadmlError):
            reader.raw(row)


def sign_table(path: Path) -> None:
    """State the hash of a mutated table in the header, as an attacker would."""
    header = json.loads((path.parent / INDEX_NAME).read_bytes())
    header["digest"] = table_digest(path.read_bytes())
    (path.parent / INDEX_NAME).write_text(json.dumps(header))


def sign_manifest(path: Path) -> None:
    (path.parent / "COMMIT").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def _note(shards: Path) -> str:
    """Return the note of a build on its first tar."""
    file = asdict(load_index(shards).shards[0])
    return json.dumps({"file": file, "skipped": []}) + "\n" + (shards / SAMPLES_NAME).read_text()


def finished_shard(path: Path) -> None:
    BuildFolder(path=path.parent, out=path.parent / "out").finished_shard(0)


def read_run(run: Path) -> None:
    """Show a run as the commands do."""
    call("status", run)
    call("status", run, "--json")
    call("metrics", run)
    call("metrics", run, "--events")
    call("checkpoint", "digest", run)


def targets(kind: str, shards: Path, run: Path) -> list[Target]:
    """Return the files of one kind."""
    attempt = run / "attempts" / "0001"
    checkpoint = max((run / "checkpoints").iterdir())
    of_run = lambda path: read_run(run)  # noqa: E731
    if kind == "YAML":
        return [
            text_target(run.parent / "profile.yaml", PROFILE, lambda path: load_profile(str(path))),
            Target(run / "config.yaml", load_recipe),
            Target(run / "config.yaml", of_run),
        ]
    if kind == "JSON":
        return [
            Target(shards / INDEX_NAME, read_shards, mutate_json),
            Target(attempt / "attempt.json", of_run, mutate_json),
            Target(attempt / "ranks" / "rank-0000", of_run, mutate_json),
            Target(attempt / "parent.json", of_run, mutate_json),
            Target(run / "predictions.json", read_predictions, mutate_json),
            Target(checkpoint / "manifest.json", lambda path: find_damage(path.parent), mutate_json, sign_manifest),
            text_target(run.parent / "meta.json", META, lambda path: SampleMeta.from_json(path.read_bytes())),
        ]
    if kind == "rows":
        return [
            Target(shards / SAMPLES_NAME, read_shards, mutate_json_lines, sign_table),
            Target(attempt / "metrics.jsonl", of_run, mutate_json_lines),
            Target(attempt / "events.jsonl", of_run, mutate_json_lines),
            text_target(run.parent / ".done-00000", _note(shards), finished_shard),
            text_target(run.parent / "table.csv", TABLE, lambda path: TableSource(table=path).list_records()),
            text_target(run.parent / "patients.csv", PATIENTS, lambda path: parse_patient_table(path.read_bytes())),
        ]
    assert kind == "tar"
    weights = next(iter(sorted(checkpoint.glob("*.safetensors"))))
    return [*(Target(path, read_shards) for path in sorted(shards.glob("*.tar"))), Target(weights, load_safetensors)]


def mutated(content: bytes, target: Target, chance: random.Random, others: list[bytes]) -> bytes:
    if target.mutate is not None and chance.random() < 0.7:
        return target.mutate(content, chance)
    return mutate_bytes(content, chance, others)


def read(target: Target, outcomes: Counter[str]) -> float:
    """Read a file; return the seconds of processor time. Any other exception than ours is a failure."""
    start = time.process_time()
    try:
        target.read(target.path)
        outcomes["read"] += 1
    except HsadmlError as error:
        outcomes["refused"] += 1
        assert isinstance(error, ConfigError) or "\n" not in str(error), str(error)
    return time.process_time() - start


def main(kind: str, count: str, shards: str, run: str) -> None:
    """Read the mutated files and print a summary."""
    found = targets(kind, Path(shards), Path(run))
    intact = {path: path.read_bytes() for target in found for path in target.path.parent.iterdir() if path.is_file()}
    outcomes: Counter[str] = Counter()
    for target in found:  # an intact file must be readable, or its mutations would all end at the first check
        target.read(target.path)
    limit_memory()
    slowest, others = 0.0, [intact[target.path] for target in found]
    for number in range(int(count)):
        chance = random.Random(f"{kind} {number}")
        target = found[number % len(found)]
        target.path.write_bytes(mutated(intact[target.path], target, chance, others))
        target.after(target.path)
        try:
            slowest = max(slowest, read(target, outcomes))
        except BaseException:
            sys.stderr.write(f"{kind} {number}: {target.path}: {target.path.read_bytes()[:500]!r}\n")
            raise
        for path, content in intact.items():
            if path.parent == target.path.parent:
                path.write_bytes(content)
    sys.stdout.write(json.dumps({"files": int(count), "slowest": slowest, **outcomes}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
