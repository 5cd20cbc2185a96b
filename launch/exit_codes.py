"""Turn the end of a process into an exit code and a message on stderr."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable

from hsadml_dist.addresses import redact_addresses
from hsadml_dist.errors import NO_SPACE_ERRNOS, ConfigError, ExitCode, HsadmlError, os_error_reason
from hsadml_dist.printable import printable, printable_lines

EXTRA_PACKAGES = {
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
"""Import names by the extra that installs them. The base installation is for login nodes and has none of them."""

ENVIRONMENT_ERRNOS = (
    *NO_SPACE_ERRNOS,
    *(errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE),
)
"""A full disk, missing permissions, a path that cannot exist, a limit on open files: not faults of this package."""


def run_with_exit_code(work: Callable[[], int | None], name: str = "hsadml") -> int:
    """Call ``work`` and return its exit code. An exception is reported on stderr, prefixed by ``name``."""
    try:
        return int(work() or ExitCode.SUCCESS)
    except (Exception, KeyboardInterrupt, SystemExit) as fault:  # noqa: BLE001  every end needs an exit code
        text, code = describe_error(fault)
        if text:
            # One write, because print makes two and a line of another rank could come between them.
            line = text if text.startswith("Traceback") else f"{name}: {text}"
            sys.stderr.write(printable_lines(redact_addresses(line)) + "\n")
        return code


def hard_exit(code: int) -> None:
    """End the process without the interpreter's shutdown, in which gloo's threads sometimes abort."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def describe_error(fault: BaseException) -> tuple[str, int]:
    """Return the message for the user, a traceback for a defect, and the exit code."""
    match fault:
        case ConfigError():
            text, code = "\n".join(printable(fault) for fault in fault.faults), int(fault.exit_code)
        case HsadmlError():
            text, code = printable(fault), int(fault.exit_code)
        case SystemExit(code=str() as message):
            text, code = message, int(ExitCode.USER_ERROR)
        case SystemExit(code=int() | None as number):
            text, code = "", number or 0
        case KeyboardInterrupt():
            text, code = "interrupted", int(ExitCode.STOPPED)
        case ModuleNotFoundError() if missing_extra(fault.name):
            text, code = missing_extra(fault.name), int(ExitCode.USER_ERROR)
        case OSError() if fault.errno in ENVIRONMENT_ERRNOS:
            where = f"{fault.filename}: " if fault.filename else ""
            text, code = f"{where}{os_error_reason(fault)}", int(ExitCode.USER_ERROR)
        case _:
            text, code = "".join(traceback.format_exception(fault)).rstrip(), int(ExitCode.INTERNAL_ERROR)
    return text, code


def missing_extra(module: str | None) -> str:
    """Return how to install the package of ``module``; empty if no extra installs it."""
    package = (module or "").partition(".")[0]
    for extra, packages in EXTRA_PACKAGES.items():
        if package in packages:
            return f"the package {package!r} is not installed: pip install 'hsadml-dist[{extra}]'"
    return ""
