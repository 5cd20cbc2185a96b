"""What the answers of a job's ranks mean, all of them laid side by side."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from hsadml_dist.launch.doctor.check_results import CheckResult, check_result, unknown_result
from hsadml_dist.launch.doctor.disk_checks import SKEW_SECONDS, check_exclusive_mkdir, check_write_rate
from hsadml_dist.launch.doctor.host_checks import (
    TRAINING,
    UNLIMITED,
    check_open_files,
    check_shared_memory,
    check_umask,
)
from hsadml_dist.launch.doctor.rank_report import CollectiveTiming, GroupReport, RankReport
from hsadml_dist.launch.doctor.slurm_checks import PROGRAMS

NODES = "nodes"
NETWORK = "network"
SHARED = "folder on the nodes"
SLOW_LATENCY, SLOW_MB = 0.005, 100.0
SLOW_TO_SEE = 2.0

RankReports = Mapping[int, RankReport]


def check_reports(
    answers: RankReports, world_size: int, output: str, workers: int | None = None
) -> Iterator[CheckResult]:
    """Yield what the answers mean.

    Args:
        answers: By rank.
        world_size: Number of ranks that were asked.
        output: Last line of the job's output, for ranks that gave no answer.
        workers: Loader workers that each rank is to have; None: not known.
    """
    yield check_missing_ranks(answers, world_size, output)
    if not answers:
        return
    yield from check_same_versions(answers)
    yield from check_node_programs(answers)
    yield from check_node_limits(answers, workers)
    yield check_gpus(answers)
    met = {rank: answer.together for rank, answer in answers.items() if answer.together is not None}
    if len(met) < world_size:
        yield check_rendezvous(answers)
        return
    yield from check_network(met, answers)
    yield from check_shared_folder(met, answers)


def check_missing_ranks(answers: RankReports, world_size: int, output: str) -> CheckResult:
    """Judge whether every rank gave an answer."""
    missing = sorted(set(range(world_size)) - answers.keys())
    hosts = Counter(answer.host for answer in answers.values())
    found = f"{len(answers)} of {world_size} answered, on {', '.join(sorted(hosts)) or 'no node'}"
    todo = f"rank {_few(missing)} wrote none: do all nodes see the folder? The job's last word: {output or 'none'}"
    return check_result(NODES, "ranks", found, fail=todo if missing else "")


def check_same_versions(answers: RankReports) -> Iterator[CheckResult]:
    """Yield whether all ranks have the same versions of everything, and all that a training needs."""
    usual = []
    for name in next(iter(answers.values())).versions:
        by_rank = {rank: answer.versions.get(name) for rank, answer in answers.items()}
        text, odd = _odd_ones(by_rank, "not installed")
        if odd:
            todo = "give all nodes the same environment: one folder that all see, or one container image"
            yield check_result(NODES, name, text, fail=todo)
        elif name in TRAINING and by_rank[min(by_rank)] is None:
            todo = "a training needs it: pip install 'hsadml-dist[train]' in the environment of the nodes"
            yield check_result(NODES, name, text, fail=todo)
        elif by_rank[min(by_rank)] is not None:
            usual.append(f"{name} {text}")
    yield check_result(NODES, "same everywhere", ", ".join(usual))
    text, odd = _odd_ones({rank: answer.package for rank, answer in answers.items()}, "")
    todo = "ranks of different copies may run different code: use one folder that all nodes see"
    yield check_result(NODES, "this package", text, warn=todo if odd else "")


def check_node_programs(answers: RankReports) -> Iterator[CheckResult]:
    """Yield whether the nodes have Slurm's programs, and may submit jobs as a chain does."""
    lacking = {(answer.host, name) for answer in answers.values() for name in answer.programs}
    needed = {"scontrol", "squeue"} & {name for _, name in lacking}
    found = "; ".join(f"no {name} on {_hosts(lacking, name)}" for name in PROGRAMS if _hosts(lacking, name))
    todo = "jobs cannot put themselves back: ask the site for scontrol and squeue on its nodes"
    yield check_result(NODES, "slurm programs", found or "all on PATH", warn=todo if needed else "")
    yield _judge_submission(answers)


def check_node_limits(answers: RankReports, workers: int | None) -> Iterator[CheckResult]:
    """Yield the worst of what the nodes give their ranks."""
    machines = [answer.machine for answer in answers.values()]
    yield check_umask(min((one.umask for one in machines), key=lambda umask: umask & 0o002), NODES)
    least = min(machines, key=lambda one: one.shared_free or 0)
    yield check_shared_memory(least.shared_total, least.shared_free, NODES)
    yield check_open_files(
        min((one.files for one in machines), key=lambda n: float("inf") if n == UNLIMITED else n), NODES
    )
    yield _judge_locked([one.locked for one in machines], any(one.gpus.names for one in answers.values()))
    yield check_rank_cpus(min(one.cpus for one in machines), workers)


def check_rank_cpus(cpus: int, workers: int | None) -> CheckResult:
    """Judge whether a rank has a processor for itself and one for each of its loader workers."""
    if workers is None:
        return check_result(NODES, "CPUs of a rank", f"at least {cpus}")
    todo = f"give --cpus-per-task {workers + 1}, or lower data.workers"
    found = f"at least {cpus}; one for the rank and {workers} for data.workers"
    return check_result(NODES, "CPUs of a rank", found, warn=todo if cpus < workers + 1 else "")


def check_gpus(answers: RankReports) -> CheckResult:
    """Judge what torch sees of the GPUs."""
    promised = [answer for answer in answers.values() if answer.gpus.promised]
    blind = [answer for answer in promised if not answer.gpus.names]
    if blind:
        found = f"{_place(blind[0])} was given GPU {blind[0].gpus.promised}, and torch sees none"
        todo = "install torch for CUDA (torch.version.cuda must be set), and look for the driver: nvidia-smi"
        return check_result(NODES, "GPUs", found, fail=todo)
    kinds, odd = _odd_ones({rank: ", ".join(answer.gpus.names) or None for rank, answer in answers.items()}, "none")
    without = [answer for answer in answers.values() if answer.gpus.names and not answer.gpus.bf16]
    todo = "ranks of unlike GPUs wait for the slowest: ask for one kind by --constraint or gres" if odd else ""
    if without:
        todo = todo or "use engine.precision=fp32: these GPUs do not compute in bf16"
    bf16 = "" if kinds == "none" else ", no bf16" if without else ", bf16"
    return check_result(NODES, "GPUs", kinds + bf16, warn=todo)


def check_rendezvous(answers: RankReports) -> CheckResult:
    """Say why the ranks did not meet."""
    errors = [f"{_place(answer)}: {answer.error}" for answer in answers.values() if answer.error]
    found = errors[0] if errors else "the ranks were not done with it when the job ended"
    todo = (
        "look whether the nodes' names lead to addresses that the others reach (getent hosts NODE), whether a "
        "firewall is between them, and set GLOO_SOCKET_IFNAME in the profile's env"
    )
    return check_result(NETWORK, "meeting", found, fail=todo)


def check_network(met: Mapping[int, GroupReport], answers: RankReports) -> Iterator[CheckResult]:
    """Yield over which addresses the ranks talk, how fast, and how far apart their clocks are."""
    ways = sorted({f"{answers[rank].host} {one.address} ({one.interface or '?'})" for rank, one in met.items()})
    yield check_result(NETWORK, "addresses", ", ".join(ways[:4]) + (", ..." if len(ways) > 4 else ""))
    if len(met) == 1:
        yield unknown_result(NETWORK, "collectives", "one rank alone has none", "ask for more ranks")
        return
    yield check_clocks(met, answers)
    for backend in dict.fromkeys(one.backend for one in met[0].timings):
        yield check_collective_speed(backend, [one for one in met[0].timings if one.backend == backend])


def check_clocks(met: Mapping[int, GroupReport], answers: RankReports) -> CheckResult:
    """Judge how far the ranks' clocks are apart: the median over votes that all left at about the same time."""
    first = met[min(met)].stamps
    apart = {
        rank: statistics.median(mine - theirs for mine, theirs in zip(one.stamps, first, strict=True))
        for rank, one in met.items()
    }
    low, high = min(apart, key=lambda rank: apart[rank]), max(apart, key=lambda rank: apart[rank])
    seconds = apart[high] - apart[low]
    sure = max(one.round_trip for one in met.values()) / 2
    found = f"within {seconds * 1e3:.1f} ms of one another, give or take {sure * 1e3:.1f} ms"
    todo = f"{_place(answers[high])} is ahead of {_place(answers[low])}: have the clocks set (chrony, ntp)"
    return check_result(NETWORK, "clocks", found, warn=todo if seconds > SKEW_SECONDS else "")


def check_collective_speed(backend: str, timings: Sequence[CollectiveTiming]) -> CheckResult:
    """Judge latency (the smallest message) and throughput (the largest) of a backend's collectives."""
    small, large = min(one.size for one in timings), max(one.size for one in timings)
    latency = max(one.seconds for one in timings if one.size == small)
    parts = [_speed_text(name, timings, small, large) for name in dict.fromkeys(one.operation for one in timings)]
    slowest = min(large / 1e6 / one.seconds for one in timings if one.size == large)
    wire = "slower than a wire of 1 Gbit/s" if slowest < SLOW_MB else "small messages are slow"
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    todo = f"{wire}: are there fewer CPUs than ranks, or is it the wrong network? {variable} in the profile names one"
    slow = latency > SLOW_LATENCY or slowest < SLOW_MB
    return check_result(NETWORK, backend, "; ".join(parts), warn=todo if slow else "")


def check_shared_folder(met: Mapping[int, GroupReport], answers: RankReports) -> Iterator[CheckResult]:
    """Yield whether all nodes see the same folder, and how it does."""
    blind = [rank for rank, one in met.items() if one.seen < len(met)]
    slowest = max(one.seen_seconds for one in met.values())
    found = f"each rank sees the files of all {len(met)}, after {slowest:.1f} s at most"
    if blind:
        found = f"{_place(answers[blind[0]])} sees files of {met[blind[0]].seen} of {len(met)} ranks"
    todo = "put run folders on a file system that all nodes share: --run /shared/..."
    slow = "the file server is slow to show what others wrote: starts of a run wait for it"
    yield check_result(SHARED, "shared", found, fail=todo if blind else "", warn=slow if slowest > SLOW_TO_SEE else "")
    wins = [sum(one) for one in zip(*(one.won for one in met.values()), strict=True)]
    yield check_exclusive_mkdir(wins, f"{len(met)} ranks", SHARED)
    rates = {answers[rank].host: one.write_rate for rank, one in met.items() if one.write_rate is not None}
    if rates:
        slow_host = min(rates, key=lambda host: rates[host])
        together = f", {len(rates)} nodes at once" if len(rates) > 1 else ""
        yield check_write_rate(rates[slow_host], f"64 MiB from {slow_host}{together}", SHARED)


def _judge_submission(answers: RankReports) -> CheckResult:
    refused = [answer for answer in answers.values() if answer.submit]
    if not refused:
        return check_result(NODES, "sbatch on nodes", "allowed (sbatch --test-only)")
    why = "not there" if "sbatch" in refused[0].programs else refused[0].submit
    todo = "a chain submits its successor from a node: submit with --requeue self"
    return check_result(NODES, "sbatch on nodes", f"{refused[0].host}: {why}", warn=todo)


def _hosts(lacking: Collection[tuple[str, str]], name: str) -> str:
    hosts = sorted(host for host, lacked in lacking if lacked == name)
    return ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")


def _judge_locked(limits: Sequence[int], with_gpus: bool) -> CheckResult:
    least = min(limits, key=lambda limit: float("inf") if limit == UNLIMITED else limit)
    found = "no limit" if least == UNLIMITED else f"{least / 2**20:.1f} MiB"
    todo = "InfiniBand needs more: ask the site for `ulimit -l unlimited` on the nodes"
    return check_result(NODES, "locked memory", found, warn=todo if with_gpus and least != UNLIMITED else "")


def _speed_text(name: str, timings: Sequence[CollectiveTiming], small: int, large: int) -> str:
    seconds = {one.size: one.seconds for one in timings if one.operation == name}
    rate = large / 1e6 / seconds[large]
    return f"{name} {seconds[small] * 1e3:.2f} ms for {small >> 10} KiB, {rate:.0f} MB/s for {large >> 20} MiB"


def _odd_ones(by_rank: Mapping[int, str | None], absent: str) -> tuple[str, list[int]]:
    """Return what most ranks have, with those that have something else named, and these ranks."""
    texts = {rank: absent if value is None else value for rank, value in by_rank.items()}
    usual = Counter(texts.values()).most_common(1)[0][0]
    odd = [rank for rank, text in texts.items() if text != usual]
    return (f"{usual}, but {texts[odd[0]]} on rank {_few(odd)}" if odd else usual), odd


def _few(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")


def _place(answer: RankReport) -> str:
    return f"rank {answer.rank} ({answer.host})"
