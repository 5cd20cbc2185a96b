"""How a process of this package ends: its exit code and what it says on stderr."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable

from hsadml_dist.errors import NO_SPACE_ERRNOS, ExitCode, HsadmlError, os_error_reason

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

ENVIRONMENT_ERRNOS = (*NO_SPACE_ERRNOS, errno.EROFS, errno.EACCES)
"""What the system says of a disk that is full or may not be written: no defect of this package."""


def run_with_exit_code(work: Callable[[], int | None], name: str = "hsadml") -> int:
    """Return the exit code of ``work``, or the one that stands for what it raised, said on stderr after ``name``."""
    try:
        return int(work() or ExitCode.SUCCESS)
    except (Exception, KeyboardInterrupt, SystemExit) as fault:  # noqa: BLE001  the process's end must say what it was
        text, code = describe_error(fault)
        if text:
            # One write: print makes two, and the line of another rank may come between text and end.
            sys.stderr.write((text if text.startswith("Traceback") else f"{name}: {text}") + "\n")
        return code


def describe_error(fault: BaseException) -> tuple[str, int]:
    """Return what to tell the user about ``fault``, and the exit code that stands for it."""
    match fault:
        case HsadmlError():
            told = str(fault), int(fault.exit_code)
        case SystemExit(code=str() as text):
            told = text, int(ExitCode.USER_ERROR)
        case SystemExit(code=int() | None as code):
            told = "", code or 0
        case KeyboardInterrupt():
            told = "interrupted", int(ExitCode.STOPPED)
        case ModuleNotFoundError() if missing_extra(fault.name):
            told = missing_extra(fault.name), int(ExitCode.USER_ERROR)
        case OSError() if fault.errno in ENVIRONMENT_ERRNOS:
            where = f"{fault.filename}: " if fault.filename else ""
            told = f"{where}{os_error_reason(fault)}", int(ExitCode.USER_ERROR)
        case _:
            told = "".join(traceback.format_exception(fault)).rstrip(), int(ExitCode.INTERNAL_ERROR)
    return told


def missing_extra(module: str | None) -> str:
    """Return one line that says how to install the package of ``module``; empty if no extra holds it."""
    package = (module or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"this needs the package {package!r}, which is not installed: pip install 'hsadml-dist[{extra}]'"
    return ""
