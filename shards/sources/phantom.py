"""Generated patients: head, brain, ventricles and one of three tumours, for demos and tests without real data.

Not anatomy, but the shape of the real problem: slices of one person resemble each other far more than slices of one
class do, so that a split by slice flatters any method and a split by person does not. Every value follows from
(seed, patient, slice). All drawing is in closed form on warped coordinates, in units of half the image's side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hsadml_dist.errors import UsageError
from hsadml_dist.shards.record import Pixels, Record

MOST_PATIENTS = 1_000_000
FIELD_OF_VIEW_MM = 240.0


@dataclass(frozen=True, kw_only=True)
class PhantomSource:
    """``patients`` generated persons of 1 to 12 slices each, drawn at ``size`` pixels."""

    patients: int
    seed: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.patients <= MOST_PATIENTS:
            raise UsageError(f"INPUT {self.patients}: a number of patients from 1 to {MOST_PATIENTS}")

    def records(self) -> tuple[Record, ...]:
        """List all slices; classes alternate, so that every three patients hold one of each."""
        return tuple(record for patient in range(self.patients) for record in self._of_patient(patient))

    def read(self, record: Record) -> Pixels:
        """Draw one slice: float32 (size, size) and its lesion's mask."""
        from hsadml_dist.shards.sources.phantom_drawing import draw
        from hsadml_dist.shards.sources.phantom_person import make_person

        patient, number = (int(part) for part in record.handle)
        return draw(make_person(self.seed, patient), number, self.size)

    def fingerprint(self) -> str:
        """Return all that the drawings depend on."""
        return f"phantom 1 {self.patients} {self.seed} {self.size}"

    def _of_patient(self, patient: int) -> Iterator[Record]:
        from hsadml_dist.shards.sources.phantom_person import make_person

        person = make_person(self.seed, patient)
        step = FIELD_OF_VIEW_MM / self.size
        for number, (plane, exam) in enumerate(zip(person.planes, person.exams, strict=True)):
            yield Record(
                identity=f"patient {patient} slice {number}",
                where=f"patient {patient}, slice {number}",
                class_name=person.class_name,
                person=f"patient {patient}",
                exam=f"exam {exam}",
                plane=plane,
                spacing_mm=(step, step),
                handle=(str(patient), str(number)),
            )
