"""The section on persons: each has the class that most of its slices are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from hsadml_dist.report.outcomes import outcome_bar
from hsadml_dist.report.page import Table
from hsadml_dist.report.section import ReportSection
from hsadml_dist.report.wording import counted, level_text, span_text


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
