from dataclasses import replace

import pytest

from hsadml_dist.launch.doctor import CheckStatus
from hsadml_dist.launch.doctor.probe_job import GpuReport
from hsadml_dist.launch.doctor.rank_checks import check_reports


def check(reports, **more):
    """Return the results by name, and the status of those that are not ok."""
    results = list(check_reports(reports, 4, "the last line", **more))
    assert all(one.todo for one in results if one.verdict in (CheckStatus.WARN, CheckStatus.FAIL))
    return {one.name: one for one in results}, {one.name: str(one.verdict) for one in results if one.verdict != "ok"}


def changed(reports, rank, **values):
    """Return the reports with one changed; ``x_`` stands for ``together.x``."""
    own = {name: value for name, value in values.items() if not name.endswith("_")}
    inner = {name.removesuffix("_"): value for name, value in values.items() if name.endswith("_")}
    one = replace(reports[rank], **own)
    if inner:
        one = replace(one, together=replace(one.together, **inner))
    return {**reports, rank: one}


def test_healthy_ranks_are_ok(reports):
    by_name, bad = check(reports)
    assert not bad
    assert by_name["ranks"].found == "4 of 4 reported, on n1, n2"
    assert by_name["same everywhere"].found.startswith("python 3.11.7, hsadml-dist 0.1.0, torch 2.13.0")
    assert by_name["addresses"].found == "n1 10.0.0.0 (ib0), n2 10.0.0.1 (ib0)"
    assert by_name["gloo"].found.startswith("all_reduce 0.50 ms for 4 KiB, 839 MB/s for 16 MiB; all_gather")
    assert "0.0 ms" in by_name["clocks"].found and "0.5 ms" in by_name["clocks"].found
    assert "8 of 8" in by_name["exclusive mkdir"].found


@pytest.mark.parametrize(
    ("rank", "values", "name", "status", "text"),
    [
        (2, {"versions": {"python": "3.11.7", "torch": "2.9"}}, "torch", "fail", "2.13.0, but 2.9 on rank 2"),
        (2, {"versions": {}}, "monai", "fail", "1.6.0, but not installed on rank 2"),
        (3, {"package": "/home/me/x"}, "this package", "warn", "/opt/hsadml_dist, but /home/me/x on rank 3"),
        (2, {"programs": ("sbatch",), "submit": "Slurm is absent"}, "sbatch on nodes", "warn", "n2: "),
        (0, {"submit": "jobs may not be submitted here"}, "sbatch on nodes", "warn", "n1: jobs may not be submitted"),
        (1, {"programs": ("scontrol",)}, "slurm programs", "warn", "no scontrol on n1"),
        (2, {"stamps_": (103.0, 104.1, 105.0)}, "clocks", "warn", "3000.0 ms"),
        (1, {"seen_": 2}, "shared", "fail", "rank 1 (n1) sees files of 2 of 4"),
        (1, {"seen_seconds_": 9.0}, "shared", "warn", "9.0 s"),
        (0, {"won_": (True,) * 8}, "exclusive mkdir", "fail", "2 of 8"),
        (2, {"write_rate_": 20.0}, "write + fsync", "warn", "20 MB/s (64 MiB from n2, 2 nodes at once)"),
        (1, {"gpus": GpuReport(promised="0")}, "GPUs", "fail", "rank 1 (n1) was assigned GPU 0"),
        (1, {"gpus": GpuReport(names=("T4",))}, "GPUs", "warn", "none, but T4 on rank 1"),
    ],
)
def test_rank_that_differs_is_named(reports, rank, values, name, status, text):
    by_name, bad = check(changed(reports, rank, **values))
    assert bad.get(name) == status, bad
    assert text in by_name[name].found


def test_missing_sbatch_affects_chains_only(reports):
    by_name, bad = check(changed(reports, 0, programs=("sbatch",), submit="absent"))
    assert by_name["slurm programs"].found == "no sbatch on n1"
    assert bad == {"sbatch on nodes": "warn"}


def test_gpus_without_bf16_are_a_warning(reports):
    old = {rank: replace(one, gpus=GpuReport(names=("T4",), promised="0")) for rank, one in reports.items()}
    by_name, bad = check(old)
    assert by_name["GPUs"].found == "T4, no bf16" and bad == {"GPUs": "warn"}
    new = {
        rank: replace(one, gpus=GpuReport(names=("H100",), bf16=True, promised="0")) for rank, one in reports.items()
    }
    by_name, bad = check(new)
    assert by_name["GPUs"].found == "H100, bf16" and not bad


def test_missing_training_package_fails_on_all_ranks(reports):
    without = {rank: replace(one, versions={**one.versions, "torch": None}) for rank, one in reports.items()}
    assert check(without)[1] == {"torch": "fail"}
    without = {rank: replace(one, versions={**one.versions, "deepspeed": None}) for rank, one in reports.items()}
    assert not check(without)[1]


def test_missing_report_fails_with_the_last_line_of_the_job(reports):
    by_name, bad = check({0: reports[0], 1: reports[1]})
    assert bad["ranks"] == "fail"
    assert "rank 2, 3" in by_name["ranks"].todo and "the last line" in by_name["ranks"].todo
    assert check({})[1] == {"ranks": "fail"}


def test_ranks_that_did_not_connect_report_the_reason(reports):
    apart = {rank: replace(one, together=None, error="connection refused" * rank) for rank, one in reports.items()}
    by_name, bad = check(apart)
    assert bad == {"connection": "fail"}
    assert by_name["connection"].found == "rank 1 (n1): connection refused"
    one_lost = {**reports, 3: replace(reports[3], together=None)}
    assert check(one_lost)[1] == {"connection": "fail"}
    hung = {rank: replace(one, together=None) for rank, one in reports.items()}
    assert check(hung)[1] == {"connection": "fail"}


@pytest.mark.parametrize(("workers", "status"), [(None, None), (3, None), (4, "warn")])
def test_rank_needs_a_cpu_for_itself_and_each_worker(reports, workers, status):
    assert check(reports, workers=workers)[1].get("CPUs of a rank") == status


@pytest.mark.parametrize(("place", "seconds", "text"), [(0, 0.01, "small messages"), (1, 0.5, "1 Gbit/s")])
def test_slow_network_names_latency_or_throughput(reports, place, seconds, text):
    timings = list(reports[0].together.timings)
    timings[place] = replace(timings[place], seconds=seconds)
    by_name, bad = check(changed(reports, 0, timings_=tuple(timings)))
    assert bad == {"gloo": "warn"}
    assert text in by_name["gloo"].todo and "GLOO_SOCKET_IFNAME" in by_name["gloo"].todo
