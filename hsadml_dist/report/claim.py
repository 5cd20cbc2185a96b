"""The Checklist for Artificial Intelligence in Medical Imaging, filled in as far as a run can.

Sources: Mongan, Moy and Kahn, Radiology: Artificial Intelligence 2 (2), e200029, 2020; Tejani and others, CLAIM 2024
Update, Radiology: Artificial Intelligence 6 (4), e240300, 2024, whose numbers and order are kept. The items' wording
is this module's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hsadml_dist.report.accuracy_sections import vote_interval
from hsadml_dist.report.formatting import controls, counted, level_text, remarks, share_text, span_text
from hsadml_dist.report.neighbour_examples import MAX_EXAMPLES, NeighbourExample
from hsadml_dist.report.page import Table
from hsadml_dist.report.run_facts import settings, software_text

RUN, PART, AUTHOR = "run", "in part", "author"
TO_FILL = "for the author"


@dataclass(frozen=True, kw_only=True)
class ClaimContext:
    """What an answer may draw on."""

    result: Mapping[str, Any]
    cases: Sequence[NeighbourExample]
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ClaimItem:
    """An item of the checklist.

    Attributes:
        number: Its number in the update of 2024.
        asks: What it asks for, in a few words.
        who: Who can answer: the run, the run in part, or the author.
        answer: What the run says; None where it knows nothing.
    """

    number: int
    asks: str
    who: str
    answer: Callable[[ClaimContext], str] | None = None


def claim_tables(
    result: Mapping[str, Any], cases: Sequence[NeighbourExample], versions: Mapping[str, str]
) -> list[Table]:
    """Return the checklist, a table for each of its parts."""
    known = ClaimContext(result=result, cases=cases, versions=versions)
    head = ("no.", "item", "who", "answer")
    return [Table(caption=part, head=head, rows=[_row(item, known) for item in items]) for part, items in PARTS.items()]


def _row(item: ClaimItem, known: ClaimContext) -> tuple[str, str, str, str]:
    return str(item.number), item.asks, item.who, TO_FILL if item.answer is None else item.answer(known)


def _method(known: ClaimContext) -> str:
    return f"Deep metric learning on the hypersphere, loss {known.result['loss']}; title: {TO_FILL}."


def _source(known: ClaimContext) -> str:
    return f"Table of samples with SHA-256 {known.result['data_digest'][:12]}...; sources, places, dates: {TO_FILL}."


def _excluded(known: ClaimContext) -> str:
    return f"What was left out of the shards stands in their card.html with reasons; criteria: {TO_FILL}."


def _prepared(known: ClaimContext) -> str:
    recipe = known.result.get("recipe") or {}
    size = f" to {recipe['image_size']} x {recipe['image_size']} pixels" if "image_size" in recipe else ""
    return f"Slices resized{size} by area, then zero mean and unit variance each; steps before: {TO_FILL}."


def _subsets(known: ClaimContext) -> str:
    return f"All slices of the folds, none picked out; how slices were taken from volumes: {TO_FILL}."


def _hidden(known: ClaimContext) -> str:
    return f"Persons, exams and samples are kept as keyed hashes; how the images were de-identified: {TO_FILL}."


def _missing(known: ClaimContext) -> str:
    persons = "" if known.result["persons"] is not None else " The data name no persons."
    return f"Every slice used has an image and a label.{persons} What was missing at the source: {TO_FILL}."


def _assigned(known: ClaimContext) -> str:
    result = known.result
    counts = f"{counted(result['slices'], 'test slice')}, {counted(result['reference_slices'], 'training slice')}"
    return f"Fold {result['fold']} of the shards' folds is the test ({counts}); the draw stands in their card.html."


def _disjoint(known: ClaimContext) -> str:
    shared = known.result["shared_persons"]
    both = "not known" if shared is None else str(shared)
    return f"Split by {known.result['split_unit']}; persons on both sides: {both}."


def _intended(known: ClaimContext) -> str:
    return f"{_sample(known.result)}; whether that is enough, and for what: {TO_FILL}."


def _model(known: ClaimContext) -> str:
    dim = (known.result.get("recipe") or {}).get("embedding_dim")
    size = f", embeddings of {dim} components" if dim else ""
    centres = counted(len(known.result["classes"]), "class centre")
    return f"{known.result['model']}{size}, {centres}; layers: the code and config.yaml."


def _software(known: ClaimContext) -> str:
    return software_text(known.versions) or "not recorded"


def _start(known: ClaimContext) -> str:
    return f"Seed {known.result['seed']}; whether weights were taken over stands in config.yaml (model.init_from)."


def _training(known: ClaimContext) -> str:
    named = "; ".join(f"{name} {value}" for name, value in settings(known.result))
    return (
        f"Loss {known.result['loss']}, seed {known.result['seed']}{'; ' * bool(named)}{named}. All of it: config.yaml."
    )


def _chosen(known: ClaimContext) -> str:
    checkpoint = known.result["checkpoint"]
    return f"Weights of step {checkpoint['step']:,}, chosen by: {known.result['chosen_by']}."


def _none_joined(known: ClaimContext) -> str:
    return "None: one training, one set of weights."


def _metrics(known: ClaimContext) -> str:
    kept = [", calibration"] * bool(known.result.get("calibration")) + [", person by person"] * bool(
        known.result.get("person_vote")
    )
    return f"k-NN accuracy (k = 1), balanced accuracy, nearest centre, confusion{''.join(kept)}; controls beside them."


def _uncertainty(known: ClaimContext) -> str:
    spans = known.result["intervals"]
    units = counted(spans["units"], spans["interval_unit"])
    return f"{level_text(spans)} percentile bootstrap over {units}, {spans['resamples']:,} samples."


def _robust(known: ClaimContext) -> str:
    others = len([name for name in known.result.get("methods") or {} if name not in ("knn", "raw_pixels", "low_level")])
    also = f" and {counted(others, 'other classifier')}" if others else ""
    return f"Controls{also} on this page; other seeds and folds: {TO_FILL} (hsadml evaluate --combine)."


def _explained(known: ClaimContext) -> str:
    shown = "Nearest training slices are shown for some queries" if known.cases else "Nearest training slices are kept"
    return f"{shown}; not validated as explanations."


def _internal(known: ClaimContext) -> str:
    return f"The held-out fold of the same data: {_sample(known.result)}."


def _external(known: ClaimContext) -> str:
    return f"None in this run; {TO_FILL}."


def _counted(known: ClaimContext) -> str:
    return f"{_sample(known.result)} tested; excluded: the shards' card.html and {TO_FILL}."


def _characteristics(known: ClaimContext) -> str:
    confusion, classes = known.result["confusion"], known.result["classes"]
    if confusion is None or len(classes) > 12:
        return f"{len(classes):,} classes; age, sex, severity, scanner: {TO_FILL}."
    by_class = ", ".join(f"{name} {sum(row)}" for name, row in zip(classes, confusion, strict=True))
    return f"Test slices by class: {by_class}; age, sex, severity, scanner: {TO_FILL}."


def _performance(known: ClaimContext) -> str:
    result = known.result
    spans = result["intervals"]
    beside = ", ".join(f"{name.replace('_', ' ')} {share_text(value)}" for name, value in controls(result))
    balanced = f"balanced {share_text(result['balanced_accuracy'])} ({span_text(spans['balanced_accuracy'])})"
    return f"k-NN {share_text(result['knn_accuracy'])} ({span_text(spans['knn_accuracy'])}), {balanced}; {beside}."


def _diagnostic(known: ClaimContext) -> str:
    vote = known.result.get("person_vote")
    by_person = (
        "" if not vote else f"By person {share_text(vote['accuracy'])} ({span_text(vote_interval(known.result))}). "
    )
    return f"{by_person}By class: the table What is taken for what; other measures of diagnosis: {TO_FILL}."


def _failures(known: ClaimContext) -> str:
    shown = sum(not case.is_correct for case in known.cases[:MAX_EXAMPLES])
    pictured = f"{counted(shown, 'wrong case')} shown with neighbours; " if shown else ""
    return f"{pictured}all answers are in predictions.json; what the failures have in common: {TO_FILL}."


def _limits(known: ClaimContext) -> str:
    found = len(list(remarks(known.result)))
    first = f"{counted(found, 'remark')} on top of this page" if found else "One fold, one seed, one source of data"
    return f"{first}; {TO_FILL}."


def _practice(known: ClaimContext) -> str:
    return f"Research use only: none for the care of a person. Intended role: {TO_FILL}."


def _protocol(known: ClaimContext) -> str:
    return f"config.yaml and result.json of this run; protocol: {TO_FILL}."


def _sample(result: Mapping[str, Any]) -> str:
    persons = "persons not named" if result["persons"] is None else counted(result["persons"], "person")
    return f"{counted(result['slices'], 'slice')}, {persons}"


PARTS: Mapping[str, Sequence[ClaimItem]] = {
    "Title, abstract, introduction": (
        ClaimItem(number=1, asks="title or abstract names the AI method", who=PART, answer=_method),
        ClaimItem(number=2, asks="abstract: design, methods, results, conclusions", who=AUTHOR),
        ClaimItem(number=3, asks="background, intended use and role", who=AUTHOR),
        ClaimItem(number=4, asks="aims and hypotheses", who=AUTHOR),
    ),
    "Methods: design and data": (
        ClaimItem(number=5, asks="prospective or retrospective", who=AUTHOR),
        ClaimItem(number=6, asks="goal of the study", who=AUTHOR),
        ClaimItem(number=7, asks="sources of the data", who=PART, answer=_source),
        ClaimItem(number=8, asks="who and what was included and excluded", who=PART, answer=_excluded),
        ClaimItem(number=9, asks="preparation of the images", who=PART, answer=_prepared),
        ClaimItem(number=10, asks="selection of parts of the data", who=PART, answer=_subsets),
        ClaimItem(number=11, asks="de-identification", who=PART, answer=_hidden),
        ClaimItem(number=12, asks="missing data", who=PART, answer=_missing),
        ClaimItem(number=13, asks="acquisition of the images", who=AUTHOR),
    ),
    "Methods: reference standard": (
        ClaimItem(number=14, asks="how the true class was found", who=AUTHOR),
        ClaimItem(number=15, asks="why this standard", who=AUTHOR),
        ClaimItem(number=16, asks="who annotated", who=AUTHOR),
        ClaimItem(number=17, asks="annotation of the test set", who=AUTHOR),
        ClaimItem(number=18, asks="agreement within and between annotators", who=AUTHOR),
    ),
    "Methods: partitions and test data": (
        ClaimItem(number=19, asks="how data were assigned to partitions", who=RUN, answer=_assigned),
        ClaimItem(number=20, asks="level at which partitions are disjoint", who=RUN, answer=_disjoint),
        ClaimItem(number=21, asks="intended size of the test sample", who=PART, answer=_intended),
    ),
    "Methods: model and training": (
        ClaimItem(number=22, asks="model", who=RUN, answer=_model),
        ClaimItem(number=23, asks="software and versions", who=RUN, answer=_software),
        ClaimItem(number=24, asks="starting weights", who=RUN, answer=_start),
        ClaimItem(number=25, asks="training: augmentation, settings", who=RUN, answer=_training),
        ClaimItem(number=26, asks="how the final model was chosen", who=RUN, answer=_chosen),
        ClaimItem(number=27, asks="ensembles", who=RUN, answer=_none_joined),
    ),
    "Methods: evaluation": (
        ClaimItem(number=28, asks="measures of performance", who=RUN, answer=_metrics),
        ClaimItem(number=29, asks="significance and uncertainty", who=RUN, answer=_uncertainty),
        ClaimItem(number=30, asks="robustness, sensitivity", who=PART, answer=_robust),
        ClaimItem(number=31, asks="explainability and its validation", who=PART, answer=_explained),
        ClaimItem(number=32, asks="evaluation on internal data", who=RUN, answer=_internal),
        ClaimItem(number=33, asks="test on external data", who=AUTHOR, answer=_external),
        ClaimItem(number=34, asks="registration as a clinical trial", who=AUTHOR),
    ),
    "Results": (
        ClaimItem(number=35, asks="numbers included and excluded", who=PART, answer=_counted),
        ClaimItem(number=36, asks="characteristics of the cases by partition", who=PART, answer=_characteristics),
        ClaimItem(number=37, asks="performance with its uncertainty", who=RUN, answer=_performance),
        ClaimItem(number=38, asks="diagnostic performance and its precision", who=PART, answer=_diagnostic),
        ClaimItem(number=39, asks="analysis of failures", who=PART, answer=_failures),
    ),
    "Discussion and other information": (
        ClaimItem(number=40, asks="limitations", who=PART, answer=_limits),
        ClaimItem(number=41, asks="implications for practice, intended use", who=PART, answer=_practice),
        ClaimItem(number=42, asks="protocol or further technical details", who=PART, answer=_protocol),
        ClaimItem(number=43, asks="availability of software, model, data", who=AUTHOR),
        ClaimItem(number=44, asks="funding and role of funders", who=AUTHOR),
    ),
}
