"""Generated patients for demos and tests without real data: an average brain bent into many, and one of three tumours.

They are cartoons of contrast-enhanced T1 pictures. No result on them says anything about patients. What they keep is
the shape of the real problem: slices of one person resemble each other far more than slices of one class do, so that a
split by slice flatters any method and a split by person does not; and the scanning site has no part in the class.

The brain is the ICBM 2009a nonlinear symmetric template (V. Fonov et al., NeuroImage 54, 2011, 313-327), shipped by
nilearn; skull, face and neck are made up. Every value follows from (seed, patient) or (seed, patient, slice).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from hsadml_dist.errors import UsageError
from hsadml_dist.shards.source import SourceListing, SourcePixels, SourceRecord

MOST_PATIENTS = 1_000_000
NEEDS_NILEARN = 'SOURCE phantom: needs nilearn, which carries the anatomy: pip install "hsadml-dist[demo]"'


def require_anatomy() -> None:
    """Refuse to begin where drawing would fail.

    Raises:
        UsageError: nilearn is not installed.
    """
    if find_spec("nilearn") is None:
        raise UsageError(NEEDS_NILEARN)


@dataclass(frozen=True, kw_only=True)
class PhantomSource:
    """``patients`` generated persons of 1 to 38 slices each, drawn at ``size`` pixels."""

    name: ClassVar[str] = "phantom"

    patients: int
    seed: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.patients <= MOST_PATIENTS:
            raise UsageError(f"INPUT {self.patients}: a number of patients from 1 to {MOST_PATIENTS}")

    def list_records(self) -> SourceListing:
        """List all slices, without drawing; classes alternate, so that every three patients hold one of each."""
        patients = range(self.patients)
        return SourceListing(records=tuple(record for patient in patients for record in self._of_patient(patient)))

    def read(self, record: SourceRecord) -> SourcePixels:
        """Draw one slice: float32 (size, size), about 0 ... 1.2, and its lesion's mask, uint8, 1 inside.

        Raises:
            UsageError: nilearn, which carries the anatomy, is not installed.
        """
        from hsadml_dist.shards.sources.phantom.patient import make_patient
        from hsadml_dist.shards.sources.phantom.slice_renderer import render_slice

        patient, number = (int(part) for part in record.handle)
        return render_slice(make_patient(self.seed, patient), number, self.size)

    def fingerprint(self) -> str:
        """Return all that the drawings depend on."""
        return f"phantom 2 {self.patients} {self.seed} {self.size}"

    def _of_patient(self, patient: int) -> Iterator[SourceRecord]:
        from hsadml_dist.shards.sources.phantom.patient import make_patient
        from hsadml_dist.shards.sources.phantom.scanner import SITES

        person = make_patient(self.seed, patient)
        step = SITES[person.site].field_of_view_mm / self.size
        for number, (plane, exam) in enumerate(zip(person.planes, person.exams, strict=True)):
            yield SourceRecord(
                record_id=f"patient {patient} slice {number}",
                where=f"patient {patient}, slice {number}",
                class_name=person.class_name,
                person=f"patient {patient}",
                exam=f"exam {exam}",
                plane=plane,
                spacing_mm=(step, step),
                handle=(str(patient), str(number)),
            )
