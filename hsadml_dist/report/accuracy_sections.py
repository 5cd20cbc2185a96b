"""Report sections on accuracy: summary, classifiers, calibration, votes per patient and confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hsadml_dist.report import figures
from hsadml_dist.report.figures import MeritPoint
from hsadml_dist.report.formatting import (
    CONTROL_KEYS,
    CONTROLS,
    NONE,
    controls,
    counted,
    level_text,
    share_text,
    span_text,
)
from hsadml_dist.report.neighbour_examples import (
    MAX_EXAMPLES,
    MOST_CLASSES,
    NeighbourExample,
    ReportSection,
    cases_table,
    degrees,
    left_out,
    shown,
    shown_cases,
    square_heads,
)
from hsadml_dist.report.page import Table
from hsadml_dist.report.plot_style import (
    COLOURS,
    CONTROL_STYLES,
    FAINT,
    GRID,
    INK,
    WIDTH,
    EmbeddedImage,
    named_y_axis,
    new_figure,
    outcome_bar,
    percent_x_axis,
    style_axes,
    to_svg,
)
from hsadml_dist.report.sphere import SphereProjection, angles_section

METHODS = {
    "knn": "k-NN, k = 1",
    "knn_5": "k-NN, k = 5",
    "knn_11": "k-NN, k = 11",
    "knn_21": "k-NN, k = 21",
    "head": "nearest class centre",
    "svm": "support vector machine",
    "logistic_regression": "logistic regression",
    "random_forest": "random forest",
    "naive_bayes": "naive Bayes",
    "raw_pixels": "raw pixels (control)",
    "low_level": "low-level features (control)",
}
"""Every method that has a name of its own, in the order of the page; others come after them under their own key."""


def classifiers_section(result: Mapping[str, Any]) -> ReportSection:
    """Return the section on ``result["methods"]``."""
    methods = ordered_methods(result["methods"])
    level = level_text(result["intervals"])
    rows = [
        [
            method_title(name),
            share_text(one["accuracy"]),
            span_text(one["interval"]),
            share_text(one["balanced_accuracy"]),
        ]
        for name, one in methods.items()
    ]
    table = Table(
        caption="Every method, the controls last: right by slice, and by slice averaged over classes",
        head=("method", "accuracy", f"{level} interval", "balanced accuracy"),
        rows=rows,
    )
    text = (
        "Each method reads the same embeddings and is fitted on the training folds alone; the controls read no"
        " embeddings. If they agree, the embeddings carry the figure and not the classifier. The method of this report"
        " is k-NN with k = 1, fixed beforehand: the best of many, picked after the fact, is flattered by the picking."
    )
    return ReportSection(
        title="Other classifiers", text=text, picture=_draw_classifiers(methods, level), tables=[table]
    )


def ordered_methods(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the methods in the page's order, the controls last."""
    last = [name for name in CONTROLS if name in methods]
    known = [name for name in METHODS if name in methods and name not in last]
    unknown = sorted(set(methods) - set(METHODS))
    return {name: methods[name] for name in (*known, *unknown, *last)}


def method_title(method: str) -> str:
    """Return a method's name for readers."""
    return METHODS.get(method, method.replace("_", " "))


def _draw_classifiers(methods: Mapping[str, Mapping[str, Any]], level: str) -> EmbeddedImage:
    learnt = [name for name in methods if name not in CONTROLS]
    controls = [name for name in CONTROLS if name in methods]
    figure, axes = new_figure(WIDTH, 0.38 * max(len(learnt), 1) + 1.25)
    for row, name in enumerate(learnt):
        one = methods[name]
        if one["interval"]:
            axes.plot(one["interval"], [row, row], color=COLOURS[0], linewidth=2, solid_capstyle="butt", zorder=2)
        axes.plot(one["accuracy"], row, "o", color=COLOURS[0], markersize=8, markeredgecolor="white", zorder=4)
        axes.plot(one["balanced_accuracy"], row + 0.27, "^", color=INK, markersize=4.5, zorder=3)
    keys = [
        Line2D([], [], color=COLOURS[0], marker="o", markersize=8, linewidth=2, label=f"accuracy, {level} interval"),
        Line2D([], [], color=INK, marker="^", linestyle="", markersize=5, label="balanced accuracy"),
    ]
    for name, (colour, _, line) in zip(controls, _looks(controls), strict=True):
        value = methods[name]["accuracy"]
        axes.axvline(value, color=colour, linewidth=1.6, linestyle=line, zorder=1)
        keys.append(
            Line2D([], [], color=colour, linewidth=1.6, linestyle=line, label=f"{method_title(name)} {value:.1%}")
        )
    named_y_axis(axes, [method_title(name) for name in learnt])
    percent_x_axis(axes)
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    words = "; ".join(f"{method_title(name)} {one['accuracy']:.1%}" for name, one in methods.items())
    return to_svg(figure, f"Points on a scale from 0 to 100 %, the controls as lines through all of them: {words}.")


def _looks(controls: Sequence[str]) -> list[tuple[str, str, Any]]:
    return [look for name, look in zip(CONTROLS, CONTROL_STYLES, strict=True) if name in controls]


def calibration_section(result: Mapping[str, Any]) -> ReportSection:
    """Return the section on ``result["calibration"]``."""
    found = result["calibration"]
    bins = found["reliability"]
    text = (
        "The probability of a class is the softmax over the scaled cosines to the class centres. Slices are grouped by"
        " the probability of the class they are given; on the dashed line it equals the share that is right, below it"
        " the network is too sure of itself. The centres give these probabilities, not the nearest neighbours."
    )
    tables = [_bins_table(bins, found["bins"]), _scores_table(found)]
    return ReportSection(
        title="Are the probabilities honest?", text=text, picture=_draw_reliability(found), tables=tables
    )


def _bins_table(bins: Sequence[Mapping[str, Any]], number: int) -> Table:
    rows = [
        [
            f"{one['low']:.0%} to {one['high']:.0%}",
            f"{one['count']:,}",
            f"{one['confidence']:.1%}",
            f"{one['accuracy']:.1%}",
            f"{100 * (one['accuracy'] - one['confidence']):+.1f} points",
        ]
        for one in bins
    ]
    caption = f"Slices by the probability of the class they are given ({number} equal bins, empty ones left out)"
    head = ("stated probability", "slices", "mean of it", "right", "right less stated")
    return Table(caption=caption, head=head, rows=rows)


def _scores_table(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            "expected calibration error",
            f"{found['expected_calibration_error']:.3f}",
            "mean gap between stated and right over the slices; above 0 by chance alone where slices are few",
        ],
        ["Brier score", f"{found['brier_score']:.3f}", "mean squared distance to the truth, from 0 (best) to 2"],
        [
            "negative log-likelihood",
            f"{found['negative_log_likelihood']:.3f}",
            "mean surprise at the true class, in nats",
        ],
    ]
    return Table(caption="Summary; less is better", head=("score", "value", "what it is"), rows=rows)


def _draw_reliability(found: Mapping[str, Any]) -> EmbeddedImage:
    bins = found["reliability"]
    stated, right = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
    figure = Figure(figsize=(4.6, 4.9), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for axes in (upper, lower):
        style_axes(axes)
        axes.grid(color=GRID, linewidth=0.8)
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1.4, linestyle=(0, (4, 3)))
    upper.vlines(stated, stated, right, color=COLOURS[1], linewidth=1.6)
    upper.plot(stated, right, "o-", color=COLOURS[0], linewidth=1.4, markersize=7, markeredgecolor="white")
    upper.set_ylabel("right")
    upper.set_ylim(-0.03, 1.03)
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    middle = [(one["low"] + one["high"]) / 2 for one in bins]
    lower.bar(middle, [one["count"] for one in bins], width=0.86 / found["bins"], color=COLOURS[0])
    lower.set_ylabel("slices")
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    lower.set_xlim(0, 1)
    lower.set_xlabel("stated probability of the class given")
    lower.xaxis.set_major_formatter(PercentFormatter(1))
    figure.align_ylabels()
    words = "; ".join(f"stated {one['confidence']:.0%}, right {one['accuracy']:.0%}" for one in bins)
    error = found["expected_calibration_error"]
    return to_svg(figure, f"Reliability diagram, expected calibration error {error:.3f}, by bin: {words}.")


@dataclass(frozen=True, kw_only=True)
class PatientVotes:
    """How the majority of a person's slices comes out: numbers of cases."""

    right: int
    undecided: int
    wrong: int

    @classmethod
    def of(cls, vote: Mapping[str, Any]) -> PatientVotes:
        """Return the numbers behind ``result["person_vote"]``."""
        right = round(vote["accuracy"] * vote["cases"])
        return cls(right=right, undecided=vote["ties"], wrong=vote["cases"] - right - vote["ties"])


def votes_section(result: Mapping[str, Any]) -> ReportSection:
    """Return the section on ``result["person_vote"]``."""
    vote, spans = result["person_vote"], result["intervals"]
    votes, level = PatientVotes.of(vote), level_text(spans)
    text = (
        "Every slice of a person has one vote, the class of its nearest neighbour; the person is given the class with"
        " most votes, and is right if that is the true one. Equal votes count as wrong."
        f" Interval: Wilson's, of independent persons.{_twice(vote)}"
    )
    by_slice = [
        "slice (k-NN, k = 1)",
        f"{result['slices']:,}",
        f"{result['knn_accuracy']:.1%}",
        span_text(spans["knn_accuracy"]),
    ]
    by_person = ["person", f"{vote['cases']:,}", f"{vote['accuracy']:.1%}", span_text(vote_interval(result))]
    outcome = [[name, str(count)] for name, count in (("right", votes.right), ("undecided", votes.undecided))]
    tables = [
        Table(
            caption="The same answers, counted by person and by slice",
            head=("counted by", "number", "right", f"{level} interval"),
            rows=[by_person, by_slice],
        ),
        Table(
            caption="How the votes come out",
            head=("majority", "persons"),
            rows=[*outcome, ["wrong", str(votes.wrong)]],
        ),
    ]
    return ReportSection(
        title="Person by person",
        text=text,
        picture=outcome_bar(asdict(votes), "persons", "the majority of their slices"),
        tables=tables,
    )


def vote_interval(result: Mapping[str, Any]) -> tuple[float, float]:
    """Return Wilson's interval of the share of right persons, at the level of the result's other intervals.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927.
    """
    share, number = result["person_vote"]["accuracy"], result["person_vote"]["cases"]
    z = NormalDist().inv_cdf((1 + result["intervals"]["level"]) / 2)
    middle, shrink = share + z * z / (2 * number), 1 + z * z / number
    half = z * (share * (1 - share) / number + z * z / (4 * number * number)) ** 0.5
    return max(0.0, (middle - half) / shrink), min(1.0, (middle + half) / shrink)


def _twice(vote: Mapping[str, Any]) -> str:
    if vote["cases"] == vote["persons"]:
        return ""
    more = f"{counted(vote['persons'], 'person')} make {vote['cases']:,} cases"
    return f" {more}: who has slices of two classes counts once for each."


def confusions_section(result: Mapping[str, Any]) -> ReportSection:
    """Return the section on ``result["confusions"]``."""
    found, number = result["confusions"], len(result["classes"])
    unseen = number - found["classes"]
    text = (
        f"{number:,} classes are too many for a table of each by each. The bar counts classes by how many of their test"
        " slices have a nearest reference of their class."
    )
    if unseen:
        text += f" {unseen:,} of the classes have no test slice."
    return ReportSection(
        title="What is taken for what",
        text=text,
        picture=outcome_bar(_outcomes(found), "classes", "how many of their slices are right"),
        tables=[_summary(found), *([_pairs(result)] if found["worst"] else [])],
    )


def _outcomes(found: Mapping[str, Any]) -> dict[str, int]:
    some = found["classes"] - found["all_right"] - found["none_right"]
    return {"every slice right": found["all_right"], "some right": some, "none right": found["none_right"]}


def _summary(found: Mapping[str, Any]) -> Table:
    rows = [[name, f"{count:,}", f"{count / max(found['classes'], 1):.1%}"] for name, count in _outcomes(found).items()]
    return Table(caption="Classes by their test slices", head=("slices of the class", "classes", "share"), rows=rows)


def _pairs(result: Mapping[str, Any]) -> Table:
    found, names = result["confusions"], result["classes"]
    rows = [[names[one["label"]], names[one["said"]], f"{one['slices']:,}"] for one in found["worst"]]
    every = f"{counted(found['pairs'], 'pair')} of classes"
    is_whole = found["pairs"] == len(rows)
    caption = f"All that is mixed up: {every}" if is_whole else f"Mixed up most: {len(rows)} of {every}"
    return Table(caption=caption, head=("true class", "taken for", "slices"), rows=rows)


FIGURES = {
    "knn_accuracy": "k-NN accuracy (k = 1)",
    "balanced_accuracy": "balanced accuracy (k-NN)",
    "head_accuracy": "nearest class centre",
    "raw_pixel_knn": "raw pixels (control)",
    "low_level_knn": "low-level features (control)",
}
_MEANING = {
    "knn_accuracy": "share of test slices whose nearest training slice, by cosine, is of their class",
    "balanced_accuracy": "the same, averaged over classes in place of slices",
    "head_accuracy": "share of test slices that lie nearest to their own class's centre",
    "raw_pixel_knn": "the nearest training slice by 64 x 64 pixels, nothing learnt",
    "low_level_knn": "the nearest training slice by brightness, extent and texture as a whole, nothing learnt",
}


def sections(
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    sphere: SphereProjection | None,
    cases: Sequence[NeighbourExample] = (),
) -> Iterator[ReportSection]:
    """Yield the sections of a verdict's page, the figures of merit first; see ``write_report``."""
    yield _figures_section(result)
    if result.get("methods"):
        yield classifiers_section(result)
    if len(result["classes"]) > MOST_CLASSES:
        if result.get("confusions"):
            yield confusions_section(result)
    elif result["confusion"] is not None:
        yield _confusion_section(result)
    if result.get("person_vote"):
        yield votes_section(result)
    if result.get("calibration"):
        yield calibration_section(result)
    if sphere is not None:
        yield _sphere_section(result, sphere)
    if result.get("geometry"):
        yield angles_section(result, None if sphere is None else sphere.dim)
    if cases:
        yield _cases_section(cases)
    if metrics:
        yield _curves_section(metrics)


def _figures_section(result: Mapping[str, Any]) -> ReportSection:
    spans = result["intervals"]
    bars = [
        MeritPoint(name=title, value=result[key], interval=spans.get(key), is_control=key in CONTROL_KEYS.values())
        for key, title in FIGURES.items()
        if result.get(key) is not None
    ]
    rows = [
        [title, f"{result[key]:.1%}", span_text(spans.get(key)), _MEANING[key]]
        for key, title in FIGURES.items()
        if result.get(key) is not None
    ]
    unit = spans["interval_unit"]
    lines = "Broken lines are the controls" if len(controls(result)) > 1 else "The broken line is the control"
    text = (
        f"{level_text(spans)} intervals: percentile bootstrap of {spans['resamples']:,} samples over"
        f" {counted(spans['units'], unit)}{', each drawn with all its slices' * (unit != 'slice')}. They cover the"
        f" choice of {unit}s, not another seed or another split. {lines}: what can be had without learning."
    )
    head = ("figure", "value", f"{level_text(spans)} interval", "what it is")
    table = Table(caption="Figures of merit, the controls last", head=head, rows=rows)
    picture = figures.figures_of_merit(bars, level_text(spans))
    return ReportSection(title="Figures", text=text, picture=picture, tables=[table])


def _confusion_section(result: Mapping[str, Any]) -> ReportSection:
    counts, names = result["confusion"], result["classes"]
    row_names, columns = square_heads(names)
    rows = [
        [name, *map(str, counts[row]), str(sum(counts[row])), _recall(counts, row)]
        for row, name in enumerate(row_names)
    ]
    head = ("true class", *columns, "all slices", "right")
    table = Table(caption="Slices by true class (rows) and class of the nearest reference", head=head, rows=rows)
    text = "Each row holds the slices of one true class: their share and number by the class of the nearest reference."
    picture = figures.confusion_matrix(counts, names)
    return ReportSection(title="What is taken for what", text=text, picture=picture, tables=[table])


def _sphere_section(result: Mapping[str, Any], sphere: SphereProjection) -> ReportSection:
    labels, names = shown(sphere.count_C.tolist()), result["classes"]
    rows = [
        [
            names[label],
            str(sphere.count_C[label]),
            degrees(float(sphere.own_angle_C[label])),
            degrees(float(sphere.other_angle_C[label])),
        ]
        for label in labels
    ]
    head = ("class", "test slices", "mean angle to own centre", "mean angle to nearest other centre")
    table = Table(caption="Angles between slices and class centres", head=head, rows=rows)
    text = _projection(sphere) + left_out(len(names), len(labels))
    if len(labels) < len(names):
        text += " Slices of all others are grey dots."
    picture = figures.sphere_map(sphere, names, labels)
    return ReportSection(title="On the sphere", text=text, picture=picture, tables=[table])


def _projection(sphere: SphereProjection) -> str:
    marks = "Large outlined marks: class centres. The angles in the table are those of the full space."
    if sphere.dim <= 3:
        return (
            f"Embeddings have {counted(sphere.dim, 'component')}: the test slices on their own sphere, turned along its"
            f" principal axes, Mollweide projection (equal areas). Nothing is left out. {marks}"
        )
    first, second, third = sphere.explained
    return (
        f"Unit embeddings of {sphere.dim} components along their first three principal axes (uncentred), scaled back to"
        f" unit length, Mollweide projection (equal areas). The axes hold {first:.1%}, {second:.1%} and {third:.1%} of"
        f" the squared length, {sum(sphere.explained):.1%} together; what lies outside them is not seen. {marks}"
    )


def _cases_section(cases: Sequence[NeighbourExample]) -> ReportSection:
    pictured = shown_cases(cases)
    wrong = sum(case.verdict == "wrong" for case in pictured)
    text = (
        f"{counted(len(pictured), 'test slice')}, {wrong} of them wrong, each with the training slices that lie nearest"
        " by cosine, nearest first. They are examples and no fair sample: errors are shown out of proportion. Grey"
        " values are stretched picture by picture. These are pictures of persons: hand the page on as you would the"
        " data."
    )
    if len(cases) > len(pictured):
        text += f" Shown are the first {MAX_EXAMPLES} of {len(cases)}."
    return ReportSection(title="Nearest cases", text=text, tables=[cases_table(pictured)], cases=pictured)


def _curves_section(metrics: Sequence[Mapping[str, Any]]) -> ReportSection:
    every, metrics = metrics, [row for row in metrics if math.isfinite(row["loss"])] or metrics
    some = sorted({round(i * (len(metrics) - 1) / 9) for i in range(10)})
    rows = [[f"{metrics[i]['step']:,}", f"{metrics[i]['loss']:.4f}", f"{metrics[i]['lr']:.3g}"] for i in some]
    attempts = len({row["attempt"] for row in metrics if "attempt" in row})
    steps, tries = counted(len(every), "step"), counted(max(attempts, 1), "attempt")
    text = f"{steps} in {tries}; a step that was redone counts once. The loss is that of the training folds."
    if len(metrics) < len(every):
        skipped = counted(len(every) - len(metrics), "step")
        text += f" Left out: {skipped} that changed nothing, since the loss was not finite."
    table = Table(caption="Loss and learning rate at some steps", head=("step", "loss", "learning rate"), rows=rows)
    return ReportSection(title="Training", text=text, picture=figures.learning_curves(metrics), tables=[table])


def _recall(counts: Sequence[Sequence[int]], row: int) -> str:
    total = sum(counts[row])
    return f"{counts[row][row] / total:.1%}" if total else NONE
