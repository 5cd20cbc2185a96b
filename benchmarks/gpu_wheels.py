"""The packages that a bare GPU machine lacks: ``make gpu-wheels`` fills a folder of wheels, ``make gpu`` reads it.

The folder travels with the working tree. The machine brings its own Python 3.12, torch and NumPy; of the wheels, only
packages that it does not have are used, unpacked behind its own.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
WHEELS = REPOSITORY / "out" / "gpu-wheels"
UNPACKED = WHEELS / "unpacked"
LIMIT_MIB = 50

PACKAGES = (
    *("pyyaml", "pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"),
    *("cyclopts", "attrs", "docstring-parser", "rich", "rich-rst", "docutils", "markdown-it-py", "mdurl", "pygments"),
    *("submitit", "cloudpickle", "jinja2", "markupsafe"),
    *("monai", "einops", "webdataset", "braceexpand", "safetensors", "h5py", "pillow", "fsspec", "tenacity", "numpy"),
    *("packaging", "psutil", "py-cpuinfo", "hjson", "msgpack", "ninja", "tqdm"),
)
"""What recipes, training and DeepSpeed import. scikit-learn and figures stay out: SciPy alone has 35 MiB."""
FROM_SOURCE = ("deepspeed",)
"""Built here without its kernels, which DeepSpeed compiles where they are needed."""
PLATFORM = ("--python-version", "3.12", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64")
OLDER = ("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64", "--platform", "any")


def fill() -> None:
    """Download the wheels, build DeepSpeed's, and check the size of the folder."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    constraints = ("-c", str(REPOSITORY / "constraints.txt"))
    target = ("--only-binary=:all:", "--no-deps", *PLATFORM, *OLDER, "--dest", str(WHEELS))
    subprocess.run([*pip, "download", "--quiet", *constraints, *target, *PACKAGES], check=True)
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(WHEELS))
    subprocess.run(
        [*pip, "wheel", "--quiet", *constraints, *options, *FROM_SOURCE],
        check=True,
        env=os.environ | {"DS_BUILD_OPS": "0"},
    )
    wheels = sorted(WHEELS.glob("*.whl"))
    mebibytes = sum(path.stat().st_size for path in wheels) / 2**20
    sys.stdout.write(f"{WHEELS}: {len(wheels)} wheels, {mebibytes:.1f} MiB\n")
    if mebibytes > LIMIT_MIB:
        raise SystemExit(f"{WHEELS}: {mebibytes:.1f} MiB; it must not exceed {LIMIT_MIB} MiB")


def use_wheels() -> list[str]:
    """Make the packages that are missing here importable, also for child processes; return their names."""
    missing = [path for path in sorted(WHEELS.glob("*.whl")) if not is_installed(path.name.split("-")[0])]
    for path in missing:
        target = UNPACKED / path.stem
        if not target.exists():
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(target)
        sys.path.append(str(target))
    paths = [str(UNPACKED / path.stem) for path in missing]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH"), *paths]))
    return [path.name.split("-")[0] for path in missing]


def is_installed(name: str) -> bool:
    """Return whether a distribution is installed, by its name on the package index."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    fill()
