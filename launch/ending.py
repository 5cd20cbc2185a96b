"""How a process of this package ends: its exit code and what it says on stderr."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable

from hsadml_dist.errors import FULL, ExitCode, HsadmlError, reason_of

# Import names that only an extra installs; the base installation is for login nodes.
EXTRAS = {
    "train": (
        "torch",
        "numpy",
        "monai",
        "webdataset",
        "safetensors",
        "h5py",
        "nibabel",
        "sklearn",
        "matplotlib",
        "PIL",
    ),
    "deepspeed": ("deepspeed",),
    "demo": ("nilearn",),
    "timm": ("timm",),
    "dicom": ("pydicom",),
}

SURROUNDINGS = (*FULL, errno.EROFS, errno.EACCES)
"""What the system says of a disk that is full or may not be written: no defect of this package."""


def guarded(work: Callable[[], int | None], name: str = "hsadml") -> int:
    """Return the exit code of ``work``, or the one that stands for what it raised, said on stderr after ``name``."""
    try:
        return int(work() or ExitCode.DONE)
    except (Exception, KeyboardInterrupt, SystemExit) as fault:  # noqa: BLE001  the process's end must say what it was
        text, code = explained(fault)
        if text:
            # One write: print makes two, and the line of another rank may come between text and end.
            sys.stderr.write((text if text.startswith("Traceback") else f"{name}: {text}") + "\n")
        return code


def explained(fault: BaseException) -> tuple[str, int]:
    """Return what to tell the user about ``fault``, and the exit code that stands for it."""
    match fault:
        case HsadmlError():
            told = str(fault), int(fault.exit_code)
        case SystemExit(code=str() as text):
            told = text, int(ExitCode.USER)
        case SystemExit(code=int() | None as code):
            told = "", code or 0
        case KeyboardInterrupt():
            told = "interrupted", int(ExitCode.STOPPED)
        case ModuleNotFoundError() if missing_extra(fault.name):
            told = missing_extra(fault.name), int(ExitCode.USER)
        case OSError() if fault.errno in SURROUNDINGS:
            where = f"{fault.filename}: " if fault.filename else ""
            told = f"{where}{reason_of(fault)}", int(ExitCode.USER)
        case _:
            told = "".join(traceback.format_exception(fault)).rstrip(), int(ExitCode.INTERNAL)
    return told


def missing_extra(module: str | None) -> str:
    """Return one line that says how to install the package of ``module``; empty if no extra holds it."""
    package = (module or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"this needs the package {package!r}, which is not installed: pip install 'hsadml-dist[{extra}]'"
    return ""
