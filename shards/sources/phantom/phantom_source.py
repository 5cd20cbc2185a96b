"""Generated patients for demos and tests without real data: an average brain, deformed, with one of three tumours.

The slices are schematic contrast-enhanced T1 images. Results on them do not apply to real patients. They keep the
structure of the real problem: slices of one patient resemble each other far more than slices of one class do, so that a
split by slice inflates the result of any method and a split by patient does not; and the site is independent of the
class.

The brain is the ICBM 2009a nonlinear symmetric template (V. Fonov et al., NeuroImage 54, 2011, 313-327) shipped by
nilearn; skull, face and neck are invented. Every value follows from (seed, patient) or (seed, patient, slice).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from hsadml_dist.errors import UsageError
from hsadml_dist.shards.source import SourceListing, SourcePixels, SourceRecord
from hsadml_dist.shards.sources.phantom.head_anatomy import NILEARN_MISSING
from hsadml_dist.shards.sources.phantom.patient import make_patient
from hsadml_dist.shards.sources.phantom.scanner import SITES
from hsadml_dist.shards.sources.phantom.slice_renderer import render_slice

MAX_PATIENTS = 1_000_000


def require_nilearn() -> None:
    """Raise UsageError if nilearn is not installed, before a build starts whose images could not be drawn."""
    if find_spec("nilearn") is None:
        raise UsageError(NILEARN_MISSING)


@dataclass(frozen=True, kw_only=True)
class PhantomSource:
    """``patients`` generated patients of 1 to 38 slices each, drawn at ``size`` pixels."""

    name: ClassVar[str] = "phantom"

    patients: int
    seed: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.patients <= MAX_PATIENTS:
            raise UsageError(f"INPUT {self.patients}: out of range; allowed: 1 ... {MAX_PATIENTS} patients")

    def list_records(self) -> SourceListing:
        """List all slices without drawing them; of every three patients, each has another class."""
        patients = range(self.patients)
        return SourceListing(records=tuple(record for patient in patients for record in self._patient_records(patient)))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Draw one slice: float32 (size, size), about 0 ... 1.2, and the mask of its lesion, uint8, 1 inside.

        Raises:
            UsageError: nilearn, which carries the anatomy, is not installed.
        """
        patient, slice_number = (int(part) for part in record.handle)
        return render_slice(make_patient(self.seed, patient), slice_number, self.size)

    def fingerprint(self) -> str:
        """Return all values that the images depend on."""
        return f"phantom 2 {self.patients} {self.seed} {self.size}"

    def _patient_records(self, number: int) -> Iterator[SourceRecord]:
        patient = make_patient(self.seed, number)
        step = SITES[patient.site].field_of_view_mm / self.size
        for slice_number, (plane, exam) in enumerate(zip(patient.planes, patient.exams, strict=True)):
            yield SourceRecord(
                record_id=f"patient {number} slice {slice_number}",
                where=f"patient {number}, slice {slice_number}",
                class_name=patient.class_name,
                person=f"patient {number}",
                exam=f"exam {exam}",
                plane=plane,
                spacing_mm=(step, step),
                handle=(str(number), str(slice_number)),
            )
