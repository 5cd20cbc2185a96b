"""``MODEL_CARD.md``: what a run's weights are, what they are for, how well they do, and what is not known.

Source of the sections: Mitchell and others, Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hsadml_dist.report.accuracy_sections import FIGURES, method_title, ordered_methods, vote_interval
from hsadml_dist.report.formatting import (
    CONTROLS,
    NONE,
    classes_are_patients,
    counted,
    level_text,
    remarks,
    share_text,
    span_text,
)
from hsadml_dist.report.run_facts import settings, software_text

TO_FILL = "**For the author.**"
NOTICE = "**Research use only.** Not a medical device; no figure here may guide the care of a person."
_MOST_CLASSES = 24
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def model_card(name: str, result: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Return the card's text.

    Args:
        name: The run's name.
        result: ``result.json`` as a dictionary.
        versions: The software's.
    """
    parts = {
        "Model details": _details(result, versions),
        "Intended use": _use(),
        "Factors": _factors(result),
        "Metrics": _metrics(result),
        "Evaluation data": _evaluation_data(result),
        "Training data": _training_data(result),
        "Quantitative analyses": _figures(result),
        "Ethical considerations": _ethics(),
        "Caveats and recommendations": _caveats(result),
    }
    lines = [f"# Model card: {escape_markdown(name)}", "", NOTICE]
    for heading, part in parts.items():
        lines += ["", f"## {heading}", "", *part]
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Return text with Markdown's and HTML's characters escaped, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _details(result: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[str]:
    checkpoint = result["checkpoint"]
    yield f"- Network: {escape_markdown(result['model'])}, embeddings compared by cosine; loss: {escape_markdown(result['loss'])}"
    weights = f"{escape_markdown(checkpoint['name'])} (step {checkpoint['step']:,})"
    yield f"- Weights: {weights}, chosen by: {escape_markdown(result['chosen_by'])}"
    yield f"- Training seed: {result['seed']}"
    named = "; ".join(f"{escape_markdown(setting)} {escape_markdown(value)}" for setting, value in settings(result))
    if named:
        yield f"- Settings: {named}"
    if versions:
        yield f"- Software of the verdict: {escape_markdown(software_text(versions))}"
    yield f"- Developed by, date, version, licence, contact: {TO_FILL}"


def _use() -> Iterator[str]:
    yield "- Meant for research on embeddings of brain MRI slices."
    yield "- Out of scope: diagnosis, triage, treatment, or any decision on a person."
    yield f"- Intended users and questions: {TO_FILL}"


def _factors(result: Mapping[str, Any]) -> Iterator[str]:
    classes = result["classes"]
    if classes_are_patients(result):
        yield f"- Classes: {counted(len(classes), 'person')}, each a class of its own, named by keyed hashes"
    else:
        yield f"- Classes ({len(classes):,}): {_named(classes)}"
    yield "- Figures are given by class; age, sex, scanner, site and severity are not known to the run."
    yield f"- Groups that matter and how the model does on them: {TO_FILL}"


def _named(classes: Sequence[str]) -> str:
    named = ", ".join(escape_markdown(one) for one in classes[:_MOST_CLASSES])
    more = f" and {len(classes) - _MOST_CLASSES:,} more" if len(classes) > _MOST_CLASSES else ""
    return named + more


def _metrics(result: Mapping[str, Any]) -> Iterator[str]:
    spans = result["intervals"]
    yield (
        "- The figure is k-NN accuracy with k = 1: the share of test slices whose nearest training slice, by cosine, is"
        " of their class. It was fixed beforehand."
    )
    yield (
        f"- Intervals: {level_text(spans)}, percentile bootstrap of {spans['resamples']:,} samples over"
        f" {counted(spans['units'], spans['interval_unit'])}; they do not cover another seed or another split."
    )
    yield "- Controls learn nothing: an accuracy means something only so far as it exceeds them."


def _evaluation_data(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"- Fold {result['fold']}, split by {escape_markdown(result['split_unit'])}: {_sample(result)}"
    shared = "not known" if result["shared_persons"] is None else f"{result['shared_persons']:,}"
    yield f"- Persons who also occur in the training folds: {shared}"
    yield f"- SHA-256 of the table of samples: `{result['data_digest']}`"
    yield f"- Source, selection, reference standard: {TO_FILL}"


def _training_data(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"- {counted(result['reference_slices'], 'slice')} of the training folds of the same data; the test fold was"
        " not read."
    )
    yield f"- Source, consent, licence: {TO_FILL}"


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"Split by {escape_markdown(result['split_unit'])}; fold {result['fold']}; {_sample(result)}. Every row is of these."
    yield ""
    level = level_text(result["intervals"])
    yield from _table(("figure", "value", f"{level} interval", "split by", "persons"), list(_merit_rows(result)))
    if result.get("methods"):
        yield ""
        yield from _table(("classifier", "accuracy", f"{level} interval", "balanced"), list(_method_rows(result)))
    if result["confusion"] is not None and len(result["classes"]) <= _MOST_CLASSES:
        yield ""
        yield from _table(("class", "test slices", "right (k-NN, k = 1)"), list(_class_rows(result)))
    found = result.get("calibration")
    if found:
        yield ""
        yield (
            f"Calibration of the probabilities: expected calibration error {found['expected_calibration_error']:.3f},"
            f" Brier score {found['brier_score']:.3f}, negative log-likelihood {found['negative_log_likelihood']:.3f}"
            " (no intervals)."
        )


def _merit_rows(result: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    spans, unit = result["intervals"], result["split_unit"]
    persons = NONE if result["persons"] is None else f"{result['persons']:,}"
    for key, name in FIGURES.items():
        if result.get(key) is not None:
            yield name, share_text(result[key]), span_text(spans.get(key)), unit, persons
    vote = result.get("person_vote")
    if vote:
        spanned = span_text(vote_interval(result))
        yield "majority of a person's slices", share_text(vote["accuracy"]), spanned, unit, f"{vote['persons']:,}"


def _method_rows(result: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for name, one in ordered_methods(result["methods"]).items():
        yield (
            method_title(name),
            share_text(one["accuracy"]),
            span_text(one["interval"]),
            share_text(one["balanced_accuracy"]),
        )


def _class_rows(result: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for label, (name, row) in enumerate(zip(result["classes"], result["confusion"], strict=True)):
        total = sum(row)
        yield name, f"{total:,}", share_text(row[label] / total if total else None)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(escape_markdown(cell) for cell in row)} |"


def _ethics() -> Iterator[str]:
    yield "- Persons, exams and samples are kept as keyed hashes only; images may carry what was burned into them."
    yield "- Embeddings of slices can tell persons apart: treat them as data on persons."
    yield f"- Approval, consent, risks and harms: {TO_FILL}"


def _caveats(result: Mapping[str, Any]) -> Iterator[str]:
    for remark in remarks(result):
        yield f"- {escape_markdown(remark)}"
    yield "- One fold, one seed and one source of data; nothing here says how the model does elsewhere."
    yield f"- Compare with the controls ({', '.join(CONTROLS.values())}), never with figures of another split."
    yield f"- Tests on external data: {TO_FILL}"


def _sample(result: Mapping[str, Any]) -> str:
    persons = "persons not named" if result["persons"] is None else counted(result["persons"], "person")
    return f"{counted(result['slices'], 'slice')}, {persons}"
