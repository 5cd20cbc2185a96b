"""Pooling and comparing runs against slow loops over slices, and refusal of runs that do not fit together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.combine import CombinedResult, Comparison, combine, holm
from hsadml_dist.evaluation.pooling import EvaluatedRun, Pool
from tests.evaluation.synthetic_evaluations import Study

STUDY = Study(lead={"softmax": 0.0, "sphereface": 0.6, "cosface": 0.2})
TWO = Study(lead={"softmax": 0.0, "sphereface": 0.6})


@pytest.fixture(scope="module")
def runs() -> list[EvaluatedRun]:
    return list(TWO.all({"person": 5, "slice": 1}, seeds=2))


@pytest.fixture(scope="module")
def whole(runs: list[EvaluatedRun]) -> CombinedResult:
    return combine(runs)


def pool_of(combined: CombinedResult, unit: str, loss: str) -> Pool:
    (found,) = [pool for pool in combined.pools if (pool.split_unit, pool.loss) == (unit, loss)]
    return found


def of_kind(combined: CombinedResult, kind: str, method: str = "knn") -> list[Comparison]:
    return [one for one in combined.comparisons if one.kind == kind and one.first.method == method]


def slow_shares(runs: Sequence[EvaluatedRun], unit: str, loss: str, method: str) -> dict[str, tuple[int, float]]:
    """Return slice key to its class and its share of correct runs."""
    predicted: dict[str, list[bool]] = {}
    label: dict[str, int] = {}
    for run in runs:
        if (run.result["split_unit"], run.result["loss"]) == (unit, loss):
            for row, key in enumerate(run.predictions.keys):
                label[key] = int(run.predictions.label_N[row])
                predicted.setdefault(key, []).append(int(run.predictions.predicted[method][row]) == label[key])
    return {key: (label[key], sum(hits) / len(hits)) for key, hits in predicted.items()}


@pytest.mark.parametrize("unit", ["person", "slice"])
@pytest.mark.parametrize("method", ["knn", "raw_pixels"])
def test_pooled_metrics_equal_loop_over_slices(
    runs: list[EvaluatedRun], whole: CombinedResult, unit: str, method: str
) -> None:
    for loss in ("softmax", "sphereface"):
        shares = slow_shares(runs, unit, loss, method)
        metrics = pool_of(whole, unit, loss).methods[method]
        assert metrics.accuracy == pytest.approx(np.mean([share for _, share in shares.values()]))
        by_class = [np.mean([s for label, s in shares.values() if label == wanted]) for wanted in range(3)]
        assert metrics.balanced_accuracy == pytest.approx(np.mean(by_class))
        for value, interval in (
            (metrics.accuracy, metrics.interval),
            (metrics.balanced_accuracy, metrics.balanced_interval),
        ):
            assert interval is not None and interval[0] < value < interval[1]


def test_patients_are_counted_once_over_all_folds(whole: CombinedResult) -> None:
    pool = pool_of(whole, "person", "softmax")
    assert (pool.persons, pool.unit, pool.units) == (40, "person", 40)
    assert pool.slices == len(TWO.person_N()) == sum(part.slices for part in pool.by_fold)
    assert sum(part.persons or 0 for part in pool.by_fold) == 40
    assert [part.slices for part in pool.by_seed] == [pool.slices] * 2
    assert np.mean([part.accuracy for part in pool.by_seed]) == pytest.approx(pool.methods["knn"].accuracy)
    weights = [part.slices for part in pool.by_fold]
    pooled = np.average([part.accuracy for part in pool.by_fold], weights=weights)
    assert pooled == pytest.approx(pool.methods["knn"].accuracy)


def test_pools_are_sorted_by_strictness_with_the_baseline_last(whole: CombinedResult) -> None:
    assert [(pool.split_unit, pool.loss) for pool in whole.pools] == [
        ("person", "sphereface"),
        ("person", "softmax"),
        ("slice", "sphereface"),
        ("slice", "softmax"),
    ]
    for one in of_kind(whole, "losses"):
        assert (one.first.loss, one.second.loss) == ("sphereface", "softmax")


def test_losses_are_compared_on_shared_slices(runs: list[EvaluatedRun]) -> None:
    some = [run for run in runs if run.result["loss"] != "sphereface" or run.result["fold"] in (0, 3)]
    (one, other) = of_kind(combine(some), "losses")
    assert (one.first.split_unit, other.first.split_unit) == ("person", "slice")
    first, second = (slow_shares(some, "person", loss, "knn") for loss in ("sphereface", "softmax"))
    assert len(first) < len(second) and one.test.slices == len(first)
    differences = [share - second[key][1] for key, (_, share) in first.items()]
    assert one.test.difference == pytest.approx(np.mean(differences))
    assert one.test.units == len({person for run in some[:1] for person in run.predictions.persons}) * 2


def test_splits_are_compared_on_the_same_slices(runs: list[EvaluatedRun], whole: CombinedResult) -> None:
    found = {one.first.loss: one for one in of_kind(whole, "splits")}
    for loss, one in found.items():
        assert (one.first.split_unit, one.second.split_unit) == ("slice", "person")
        leaky, strict = (slow_shares(runs, unit, loss, "knn") for unit in ("slice", "person"))
        assert one.test.slices == len(leaky) < len(strict)
        assert one.test.accuracy_second == pytest.approx(np.mean([strict[key][1] for key in leaky]))
        assert one.test.difference > 0.03 and one.test.permutation.p < 0.01
    assert len(of_kind(whole, "splits", "raw_pixels")) == 2


def test_each_loss_is_compared_with_raw_pixels(whole: CombinedResult) -> None:
    for one in of_kind(whole, "control"):
        assert (one.second.method, one.adjusted_p) == ("raw_pixels", None)
        pool = pool_of(whole, one.first.split_unit, one.first.loss)
        assert one.test.accuracy_second == pytest.approx(pool.methods["raw_pixels"].accuracy)
    assert len(of_kind(whole, "control")) == 4


def test_missing_folds_and_seeds_are_listed(whole: CombinedResult, runs: list[EvaluatedRun]) -> None:
    assert pool_of(whole, "person", "softmax").missing == ()
    assert pool_of(whole, "slice", "softmax").missing == tuple((seed, fold) for seed in (0, 1) for fold in (1, 2, 3, 4))
    lost = [run for run in runs if run.name != "person/softmax/fold-3-seed-1"]
    unknown = [dataclasses.replace(run, folds=()) for run in lost]
    for some in (lost, unknown):
        found = combine(some)
        assert pool_of(found, "person", "softmax").missing == ((1, 3),)
        assert pool_of(found, "person", "softmax").slices == pool_of(whole, "person", "softmax").slices
    assert pool_of(combine(unknown), "slice", "softmax").missing == ()


def test_method_missing_in_one_run_is_left_out_of_its_pool_only(runs: list[EvaluatedRun]) -> None:
    short = {method: predicted for method, predicted in runs[0].predictions.predicted.items() if method != "svm"}
    some = [
        dataclasses.replace(runs[0], predictions=dataclasses.replace(runs[0].predictions, predicted=short)),
        *runs[1:],
    ]
    found = combine(some)
    assert found.left_out == ("svm",)
    assert [("svm" in pool.methods) for pool in found.pools] == [True, False, True, True]


def test_differing_settings_are_listed_except_the_compared_ones(
    runs: list[EvaluatedRun], whole: CombinedResult
) -> None:
    assert whole.differing == {}
    changed_run = dataclasses.replace(runs[3], settings=dict(runs[3].settings) | {"optim.lr": 0.1})
    found = combine([*runs[:3], changed_run, *runs[4:]])
    assert found.differing.keys() == {"optim.lr"}
    assert found.differing["optim.lr"]["0.1"] == (runs[3].name,)


def test_label_is_taken_from_the_runs(runs: list[EvaluatedRun], whole: CombinedResult) -> None:
    assert whole.label == "class"  # results of older versions have no label
    of_persons = [dataclasses.replace(run, result=dict(run.result) | {"label": "person"}) for run in runs]
    assert combine(of_persons).label == "person"


def test_combine_is_independent_of_the_order_of_runs(runs: list[EvaluatedRun], whole: CombinedResult) -> None:
    assert combine(runs[::-1]) == whole


def test_combined_json_round_trip(whole: CombinedResult) -> None:
    values = json.loads(whole.to_json())
    assert values == whole.to_dict()
    assert values["schema_version"] == 1
    assert values["pools"][0]["methods"]["knn"]["accuracy"] == whole.pools[0].methods["knn"].accuracy
    assert len(values["sources"]) == 24


def test_p_values_of_several_losses_are_adjusted_by_holm() -> None:
    found = of_kind(combine(list(STUDY.all({"person": 5}))), "losses")
    assert [(one.first.loss, one.second.loss) for one in found] == [
        ("cosface", "sphereface"),
        ("cosface", "softmax"),
        ("sphereface", "softmax"),
    ]
    plain = [one.test.permutation.p for one in found]
    assert [one.adjusted_p for one in found] == holm(plain)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


def test_single_run_is_a_pool_without_comparisons_of_losses() -> None:
    found = combine([TWO.run("person", "softmax", 2)])
    assert len(found.pools) == 1 and of_kind(found, "losses") == []
    assert found.pools[0].missing == ((0, 0), (0, 1), (0, 3), (0, 4))


def test_unknown_patients_are_resampled_by_slice() -> None:
    run = TWO.run("slice", "softmax", 0)
    unknown = (None,) * len(run.predictions)
    bare = dataclasses.replace(run.predictions, persons=unknown, exams=unknown)
    result = dict(run.result) | {"shared_persons": None}
    (pool,) = combine([dataclasses.replace(run, predictions=bare, result=result)]).pools
    assert (pool.unit, pool.persons, pool.shared_persons) == ("slice", None, None)


def changed(run: EvaluatedRun, **result: Any) -> EvaluatedRun:
    return dataclasses.replace(run, result=dict(run.result) | result)


def relabelled(run: EvaluatedRun) -> EvaluatedRun:
    predicted = {method: (labels + 1) % 3 for method, labels in run.predictions.predicted.items()}
    label_N = (run.predictions.label_N + 1) % 3
    return dataclasses.replace(
        run, predictions=dataclasses.replace(run.predictions, label_N=label_N, predicted=predicted)
    )


def renamed(run: EvaluatedRun) -> EvaluatedRun:
    names = ("a", "b", "c")
    return changed(
        dataclasses.replace(run, predictions=dataclasses.replace(run.predictions, classes=names)), classes=list(names)
    )


@pytest.mark.parametrize(
    ("alter", "facts"),
    [
        (
            lambda run: changed(run, knn_accuracy=0.5),
            "softmax/fold-0: result.json and predictions.json",
        ),
        (lambda run: changed(run, slices=3), "result.json and predictions.json"),
        (lambda run: changed(run, model="vit"), "model vit.*person/softmax/fold-0.*resnet_gn_small"),
        (renamed, "classes a, b, c.*person/softmax/fold-0.*glioma, meningioma, pituitary"),
        (relabelled, "has two classes"),
        (lambda run: TWO.run("person", "softmax", 0), "loss softmax, seed 0, fold 0"),
        (
            lambda run: changed(TWO.run("person", "softmax", 0), fold=1),
            "slice [0-9a-f]{32}",
        ),
    ],
)
def test_incompatible_runs_are_refused_in_one_line(alter: Callable[[EvaluatedRun], EvaluatedRun], facts: str) -> None:
    fitting = [TWO.run("person", "softmax", 0), TWO.run("slice", "softmax", 0)]
    combine(fitting)
    with pytest.raises(DataError, match=facts) as caught:
        combine([fitting[0], alter(fitting[1])])
    assert "\n" not in str(caught.value)


def test_thousands_of_class_names_are_shortened() -> None:
    run = TWO.run("person", "softmax", 0)
    both = []
    for last in ("x", "y"):
        names = (*map(str, range(3000)), last)
        bare = dataclasses.replace(run.predictions, classes=names)
        both.append(changed(dataclasses.replace(run, predictions=bare), classes=list(names)))
    with pytest.raises(DataError) as caught:
        combine(both)
    assert len(str(caught.value)) < 400 and str(caught.value).count("3001, CRC") == 2
