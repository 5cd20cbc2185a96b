"""What a command says where a package of an extra is not installed."""

from __future__ import annotations

# Import names of the extras that a command may find missing; the base installation is for login nodes.
EXTRAS = {
    "train": {
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
    },
    "deepspeed": {"deepspeed"},
    "demo": {"nilearn"},
    "timm": {"timm"},
    "dicom": {"pydicom"},
}


def needs_extra(fault: ModuleNotFoundError) -> str:
    """Return one line that says how to install what was missing; empty if no extra holds it."""
    module = (fault.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"this needs the package {module!r}, which is not installed: pip install 'hsadml-dist[{extra}]'"
    return ""
