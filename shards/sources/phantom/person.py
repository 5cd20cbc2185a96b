"""The generated patients: what a listing tells of them, and what their slices have in common.

Everything follows from (seed, patient), or (seed, patient, exam), by numpy's generator alone: neither the template nor
scipy is needed to list a million patients' slices.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.shards.record import PLANES
from hsadml_dist.shards.sources.phantom.scan import SITES

CLASSES = ("meningioma", "glioma", "pituitary")
MOST_SLICES = 38
USUAL_SLICES = 6.6
"""Median number of slices a patient; their logarithm spreads by SLICE_SPREAD."""
SLICE_SPREAD = 0.65
SECOND_EXAMS = 0.2
"""Share of patients who come back for a second exam."""
PLANES_A_PERSON = (0.5, 0.35, 0.15)
"""Share of patients imaged in one, two and three planes."""


class Stream(enum.IntEnum):
    """One random stream a purpose, so that a change in one leaves the others as they were. Never 0: numpy pads by 0."""

    PERSON = 1
    LESION = 2
    POSE = 3
    CONTRAST = 4
    SLICE = 5


def stream(seed: int, patient: int, purpose: Stream, number: int = 0) -> np.random.Generator:
    """Return the generator of one purpose."""
    return np.random.default_rng([seed, patient, purpose, number])


@dataclass(frozen=True, kw_only=True)
class PhantomPatient:
    """What the listing needs of one generated person.

    Attributes:
        seed: The phantom's seed.
        patient: The person's number.
        class_name: The tumour.
        site: Where the person was scanned, an index of ``SITES``: drawn without looking at the class.
        planes: Each slice's plane.
        exams: Each slice's exam, 0 or 1.
    """

    seed: int
    patient: int
    class_name: str
    site: int
    planes: tuple[str, ...]
    exams: tuple[int, ...]

    def place_in_series(self, number: int) -> int:
        """Return the place of slice ``number`` among the slices of its exam and plane."""
        kinds = list(zip(self.exams, self.planes, strict=True))
        return kinds[:number].count(kinds[number])

    def stream(self, purpose: Stream, number: int = 0) -> np.random.Generator:
        """Return this person's generator of one purpose."""
        return stream(self.seed, self.patient, purpose, number)


@lru_cache(maxsize=64)
def make_patient(seed: int, patient: int) -> PhantomPatient:
    """Draw up patient number ``patient``: the same for the same arguments; classes take turns."""
    rng = stream(seed, patient, Stream.PERSON)
    site = int(rng.integers(len(SITES)))
    count = int(np.clip(np.rint(USUAL_SLICES * np.exp(SLICE_SPREAD * rng.standard_normal())), 1, MOST_SLICES))
    second = count - int(rng.integers(1, count)) if count > 1 and rng.random() < SECOND_EXAMS else count
    kept = rng.permutation(len(PLANES))[: 1 + int(rng.choice(3, p=PLANES_A_PERSON))]
    planes = [PLANES[int(plane)] for plane in rng.choice(kept, size=count)]
    return PhantomPatient(
        seed=seed,
        patient=patient,
        class_name=CLASSES[patient % len(CLASSES)],
        site=site,
        planes=(*sorted(planes[:second]), *sorted(planes[second:])),
        exams=tuple(int(number >= second) for number in range(count)),
    )
