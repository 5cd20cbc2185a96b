"""The benchmark of the input: a small run from end to end, and that other pixels end it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hsadml_dist.data.index import load_index

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROUNDS, BATCH, NOISE = 2, 4, 6
READING = {"ours", "ours-sha256", "webdataset"}
PATH = {"ours", "ours-fused", "ours-cached", "ours-fused-cached"} | {
    f"webdataset-monai{kind}" for kind in ("", "-no-meta", "-lazy")
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a file of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__


@pytest.fixture
def setting(load: Callable[[str], ModuleType], tiny_shards: Path, tmp_path: Path) -> Any:
    """What the ways read here."""
    ways = load("loader_variants")
    return ways.Setting(shards=tiny_shards, count=2 * BATCH, batch=BATCH, cache=tmp_path / "cache", rows=1000)


def test_each_implementation_runs_in_its_own_process(
    tmp_path: Path, tiny_shards: Path, load: Callable[[str], ModuleType]
) -> None:
    setting = {"shards": str(tiny_shards), "cache": str(tmp_path), "count": BATCH, "batch": BATCH, "rows": 100}
    options = argparse.Namespace(rounds=ROUNDS)
    (case,) = load("loader").side_by_side("reading", ("webdataset",), setting, options, "a title")
    assert (case["case"], case["implementation"], case["samples"]) == ("a title", "webdataset", BATCH)
    assert len(case["seconds"]) == ROUNDS
    assert all(seconds > 0 for seconds in case["seconds"])


def test_ratios_compare_medians_with_the_fastest_rival(
    load: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"ours": [1.0, 2.0, 9.0], "slow": [8.0, 8.0, 8.0], "quick": [3.0, 3.0, 0.1]}
    cases = [{"implementation": name, "seconds": each} for name, each in seconds.items()]
    load("loader").say_ratios(cases, [("ours", ("slow", "quick"), 0.95)])
    assert capsys.readouterr().out == "  ours: 1.50 times as fast as quick (needed: 0.95)\n"


def test_noise_samples_have_64_kib(tmp_path: Path, load: Callable[[str], ModuleType]) -> None:
    index = load_index(load("loader_shards").build_noise(tmp_path, NOISE))
    assert len(index) == NOISE
    for row in index.samples:
        assert row.members["png"][1] == pytest.approx(2**16, rel=0.02)


def test_slices_have_no_masks(tmp_path: Path, load: Callable[[str], ModuleType]) -> None:
    index = load_index(load("loader_shards").build_slices(tmp_path, 3, 32))
    assert all(set(row.members) == {"png", "json"} for row in index.samples)


def test_reading_implementations_read_the_same_bytes(
    load: Callable[[str], ModuleType], setting: Any, tiny_shards: Path
) -> None:
    everything = replace(setting, count=len(load_index(tiny_shards)))
    sizes = {name: way(everything)() for name, way in load("loader_variants").READING.items()}
    assert set(sizes) == READING == set(load("loader").READING)
    assert len(set(sizes.values())) == 1
    assert sizes["ours"] > 0


def test_path_implementations_run(load: Callable[[str], ModuleType], setting: Any) -> None:
    ways = load("loader_variants")
    assert set(ways.PATH) == PATH == set(load("loader").PATH)
    for way in ways.PATH.values():
        take = way(setting)
        take()
        take()
    assert len(list(setting.cache.iterdir())) == 1


def test_resumed_loader_starts_at_the_right_sample(
    load: Callable[[str], ModuleType], setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = load("loader_variants")
    asked: list[int] = []
    start = ways.Loader.start
    monkeypatch.setattr(ways.Loader, "start", lambda self, a, b: (asked.append(a), start(self, a, b))[1])
    for way in ways.RESUME.values():
        way(setting)()
    assert asked == [26, 226]


def test_implementations_produce_the_same_pixels(load: Callable[[str], ModuleType], setting: Any) -> None:
    found = load("loader_variants").distances(setting)
    assert set(found) == PATH - {"ours", "ours-fused-cached"}
    assert found["ours-cached"] == found["webdataset-monai"] == found["webdataset-monai-no-meta"] == 0
    assert 0 < found["ours-fused"] < 1e-4
    assert found["webdataset-monai-lazy"] < 1e-4


def test_differing_pixels_end_the_benchmark(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    loader = load("loader")

    class Wrong:
        def __init__(self, order: dict[str, Any], setting: dict[str, Any]) -> None:
            assert order["role"] == "distances"

        def answer(self) -> dict[str, float]:
            return {"ours-fused": 1e-5, "ours-cached": float("nan"), "webdataset-monai-lazy": 0.02}

        def end(self) -> None:
            pass

    monkeypatch.setattr(loader, "Process", Wrong)
    with pytest.raises(SystemExit, match=r"ours-cached by nan, webdataset-monai-lazy by 2\.0e-02"):
        loader.refuse_other_pixels({})


def test_every_stage_is_measured(load: Callable[[str], ModuleType], setting: Any) -> None:
    seconds = load("loader_process")._stage_seconds(setting)
    single = {"read", "SHA-256", "decode", "resize, normalise", "augment"}
    assert set(seconds) == single | {"augment, fused", "put a batch together", "read from the cache"}
    assert all(each > 0 for each in seconds.values())
