"""State which slices and patients of an evaluation the run was trained on, and mark the figures that include them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hsadml_dist.report.formatting import classes_are_patients

REASONS = {
    "no_record": "the run has no record of its training data, and its shards were moved or have changed",
    "no_key": "the key of the run's record is missing",
    "partial_record": "the initial weights come from a run without a record of its training data",
    "no_content_hashes": "the shards of the training had no content hashes and are gone",
    "other_size": "the images are stored at another size than those of the training",
    "other_id_key": "the patients are hashed under another id key than those of the training",
    "no_patient_ids": "not every slice here and in the training names its patient",
}
"""Why a count is unknown or a lower bound, by the code in ``trained_unknown``."""
SLICE_REASONS = frozenset(("partial_record", "no_content_hashes", "other_size"))
PATIENT_REASONS = frozenset(("partial_record", "other_id_key", "no_patient_ids"))
SLICES_MARK, PATIENTS_MARK = "(trained slices)", "(trained patients)"


def trained_counts(result: Mapping[str, Any]) -> str:
    """Return the counts in words, for instance ``slices 0 of 19, patients unknown``."""
    slices = _count(result.get("trained_slices"), result["slices"], result, SLICE_REASONS)
    patients = _count(result.get("trained_persons"), result.get("persons"), result, PATIENT_REASONS)
    return f"slices {slices}, patients {patients}"


def trained_reasons(result: Mapping[str, Any]) -> str:
    """Return why a count is unknown or a lower bound; empty if none is."""
    codes = result.get("trained_unknown") or ()
    return "; ".join(REASONS.get(code, code) for code in codes)


def trained_mark(result: Mapping[str, Any]) -> str:
    """Return the mark of every figure of a result that includes trained slices or patients; empty without them."""
    if result.get("trained_slices"):
        return SLICES_MARK
    return PATIENTS_MARK if result.get("trained_persons") and not classes_are_patients(result) else ""


def _count(number: int | None, total: int | None, result: Mapping[str, Any], reasons: frozenset[str]) -> str:
    if number is None:
        return "unknown"
    is_bound = number and reasons.intersection(result.get("trained_unknown") or ())
    return f"{'at least ' if is_bound else ''}{number}" + ("" if total is None else f" of {total}")
