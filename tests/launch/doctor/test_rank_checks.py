from dataclasses import replace

import pytest

from hsadml_dist.launch.doctor.check_results import CheckStatus
from hsadml_dist.launch.doctor.rank_checks import check_reports
from hsadml_dist.launch.doctor.rank_report import GpuReport


def judged(answers, **more):
    """The findings by name; those that are not ok in a list of their own."""
    found = list(check_reports(answers, 4, "the last line", **more))
    assert all(one.todo for one in found if one.verdict in (CheckStatus.WARN, CheckStatus.FAIL))
    return {one.name: one for one in found}, {one.name: str(one.verdict) for one in found if one.verdict != "ok"}


def changed(answers, rank, **values):
    """The answers, one of them changed; ``together.x`` by ``x_``."""
    own = {name: value for name, value in values.items() if not name.endswith("_")}
    inner = {name.removesuffix("_"): value for name, value in values.items() if name.endswith("_")}
    one = replace(answers[rank], **own)
    if inner:
        one = replace(one, together=replace(one.together, **inner))
    return {**answers, rank: one}


def test_healthy_ranks_are_well(answers):
    by_name, bad = judged(answers)
    assert not bad
    assert by_name["ranks"].found == "4 of 4 answered, on n1, n2"
    assert by_name["same everywhere"].found.startswith("python 3.11.7, hsadml-dist 0.1.0, torch 2.13.0")
    assert by_name["addresses"].found == "n1 10.0.0.0 (ib0), n2 10.0.0.1 (ib0)"
    assert by_name["gloo"].found.startswith("all_reduce 0.50 ms for 4 KiB, 839 MB/s for 16 MiB; all_gather")
    assert by_name["clocks"].found == "within 0.0 ms of one another, give or take 0.5 ms"
    assert by_name["exclusive mkdir"].found == "one winner in 8 of 8 races of 4 ranks"


@pytest.mark.parametrize(
    ("rank", "values", "name", "verdict", "text"),
    [
        (2, {"versions": {"python": "3.11.7", "torch": "2.9"}}, "torch", "fail", "2.13.0, but 2.9 on rank 2"),
        (2, {"versions": {}}, "monai", "fail", "1.6.0, but not installed on rank 2"),
        (3, {"package": "/home/me/x"}, "this package", "warn", "/opt/hsadml_dist, but /home/me/x on rank 3"),
        (2, {"programs": ("sbatch",), "submit": "Slurm is absent"}, "sbatch on nodes", "warn", "n2: not there"),
        (0, {"submit": "jobs may not be submitted here"}, "sbatch on nodes", "warn", "n1: jobs may not be submitted"),
        (1, {"programs": ("scontrol",)}, "slurm programs", "warn", "no scontrol on n1"),
        (2, {"stamps_": (103.0, 104.1, 105.0)}, "clocks", "warn", "within 3000.0 ms"),
        (1, {"seen_": 2}, "shared", "fail", "rank 1 (n1) sees files of 2 of 4 ranks"),
        (1, {"seen_seconds_": 9.0}, "shared", "warn", "after 9.0 s at most"),
        (0, {"won_": (True,) * 8}, "exclusive mkdir", "fail", "one winner in 2 of 8 races"),
        (2, {"write_rate_": 20.0}, "write + fsync", "warn", "20 MB/s (64 MiB from n2, 2 nodes at once)"),
        (1, {"gpus": GpuReport(promised="0")}, "GPUs", "fail", "rank 1 (n1) was given GPU 0, and torch sees none"),
        (1, {"gpus": GpuReport(names=("T4",))}, "GPUs", "warn", "none, but T4 on rank 1"),
    ],
)
def test_one_rank_that_differs_is_named(answers, rank, values, name, verdict, text):
    by_name, bad = judged(changed(answers, rank, **values))
    assert bad.get(name) == verdict, bad
    assert text in by_name[name].found


def test_sbatch_alone_may_lack_where_nothing_but_a_chain_needs_it(answers):
    by_name, bad = judged(changed(answers, 0, programs=("sbatch",), submit="absent"))
    assert by_name["slurm programs"].found == "no sbatch on n1"
    assert bad == {"sbatch on nodes": "warn"}


def test_gpus_without_bf16(answers):
    old = {rank: replace(answer, gpus=GpuReport(names=("T4",), promised="0")) for rank, answer in answers.items()}
    by_name, bad = judged(old)
    assert by_name["GPUs"].found == "T4, no bf16" and bad == {"GPUs": "warn"}
    new = {
        rank: replace(one, gpus=GpuReport(names=("H100",), bf16=True, promised="0")) for rank, one in answers.items()
    }
    by_name, bad = judged(new)
    assert by_name["GPUs"].found == "H100, bf16" and not bad


def test_packages_that_no_rank_has(answers):
    without = {rank: replace(one, versions={**one.versions, "torch": None}) for rank, one in answers.items()}
    assert judged(without)[1] == {"torch": "fail"}
    without = {rank: replace(one, versions={**one.versions, "deepspeed": None}) for rank, one in answers.items()}
    assert not judged(without)[1]


def test_a_rank_without_an_answer_fails_with_the_jobs_last_word(answers):
    by_name, bad = judged({0: answers[0], 1: answers[1]})
    assert bad["ranks"] == "fail"
    assert "rank 2, 3 wrote none" in by_name["ranks"].todo and "the last line" in by_name["ranks"].todo
    assert judged({})[1] == {"ranks": "fail"}


def test_ranks_that_did_not_meet_say_why(answers):
    apart = {rank: replace(one, together=None, error="connection refused" * rank) for rank, one in answers.items()}
    by_name, bad = judged(apart)
    assert bad == {"meeting": "fail"}
    assert by_name["meeting"].found == "rank 1 (n1): connection refused"
    one_lost = {**answers, 3: replace(answers[3], together=None)}
    assert judged(one_lost)[1] == {"meeting": "fail"}
    hung = {rank: replace(one, together=None) for rank, one in answers.items()}
    assert "not done with it" in judged(hung)[0]["meeting"].found


@pytest.mark.parametrize(("workers", "verdict"), [(None, None), (3, None), (4, "warn")])
def test_a_rank_needs_a_cpu_for_itself_and_each_worker(answers, workers, verdict):
    assert judged(answers, workers=workers)[1].get("CPUs of a rank") == verdict


@pytest.mark.parametrize(("place", "seconds", "text"), [(0, 0.01, "small messages are slow"), (1, 0.5, "1 Gbit/s")])
def test_a_slow_network_is_told_by_what_is_slow(answers, place, seconds, text):
    timings = list(answers[0].together.timings)
    timings[place] = replace(timings[place], seconds=seconds)
    by_name, bad = judged(changed(answers, 0, timings_=tuple(timings)))
    assert bad == {"gloo": "warn"}
    assert text in by_name["gloo"].todo and "GLOO_SOCKET_IFNAME" in by_name["gloo"].todo
