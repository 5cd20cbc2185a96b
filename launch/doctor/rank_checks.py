"""Checks of the reports that the ranks of the doctor's job wrote, compared with each other."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hsadml_dist.launch.doctor import CheckResult, check_result, unknown_result
from hsadml_dist.launch.doctor.disk_checks import MAX_SKEW_SECONDS, check_exclusive_mkdir, check_write_rate
from hsadml_dist.launch.doctor.host_checks import (
    TRAINING_PACKAGES,
    UNLIMITED,
    check_open_files,
    check_shared_memory,
    check_umask,
)
from hsadml_dist.launch.doctor.probe_job import CollectiveTiming, GroupReport, RankReport
from hsadml_dist.launch.doctor.slurm_checks import PROGRAMS

NODES = "nodes"
NETWORK = "network"
SHARED = "folder on the nodes"
SLOW_LATENCY_SECONDS, SLOW_MB_PER_SECOND = 0.005, 100.0
SLOW_VISIBLE_SECONDS = 2.0

RankReports = Mapping[int, RankReport]
GroupReports = Mapping[int, GroupReport]


def check_reports(
    reports: RankReports, world_size: int, last_line: str, workers: int | None = None
) -> Iterator[CheckResult]:
    """Yield the results for a job.

    Args:
        reports: By rank.
        world_size: Number of ranks of the job.
        last_line: Last line of the job's output, reported for ranks that wrote no report.
        workers: Loader workers of each rank; None if unknown.
    """
    yield check_missing_ranks(reports, world_size, last_line)
    if not reports:
        return
    yield from check_same_versions(reports)
    yield from check_node_programs(reports)
    yield from check_node_limits(reports, workers)
    yield check_gpus(reports)
    connected = {rank: report.together for rank, report in reports.items() if report.together is not None}
    if len(connected) < world_size:
        yield check_rendezvous(reports)
        return
    yield from check_network(connected, reports)
    yield from check_shared_folder(connected, reports)


def check_missing_ranks(reports: RankReports, world_size: int, last_line: str) -> CheckResult:
    """Check that every rank wrote a report."""
    missing = sorted(set(range(world_size)) - reports.keys())
    hosts = ", ".join(sorted({report.host for report in reports.values()})) or "no node"
    todo = f"no report of rank {_first_few(missing)}: do all nodes see the folder? Last output: {last_line or 'none'}"
    return check_result(
        NODES, "ranks", f"{len(reports)} of {world_size} reported, on {hosts}", fail=todo if missing else ""
    )


def check_same_versions(reports: RankReports) -> Iterator[CheckResult]:
    """Check that all ranks have the same versions, and the packages that training needs."""
    same = []
    for name in next(iter(reports.values())).versions:
        by_rank = {rank: report.versions.get(name) for rank, report in reports.items()}
        text, differing = _compare_ranks(by_rank, "not installed")
        if differing:
            todo = "give all nodes the same environment: one folder that all see, or one container image"
            yield check_result(NODES, name, text, fail=todo)
        elif name in TRAINING_PACKAGES and by_rank[min(by_rank)] is None:
            todo = "training needs it: pip install 'hsadml-dist[train]' in the environment of the nodes"
            yield check_result(NODES, name, text, fail=todo)
        elif by_rank[min(by_rank)] is not None:
            same.append(f"{name} {text}")
    yield check_result(NODES, "same everywhere", ", ".join(same))
    text, differing = _compare_ranks({rank: report.package for rank, report in reports.items()}, "")
    todo = "ranks may run different code from different copies: use one folder that all nodes see"
    yield check_result(NODES, "this package", text, warn=todo if differing else "")


def check_node_programs(reports: RankReports) -> Iterator[CheckResult]:
    """Check that the nodes have Slurm's programs, and accept jobs as a chain needs it."""
    hosts = {name: sorted({report.host for report in reports.values() if name in report.programs}) for name in PROGRAMS}
    found = "; ".join(f"no {name} on {_first_few(missing)}" for name, missing in hosts.items() if missing)
    todo = "jobs cannot requeue themselves: ask the site for scontrol and squeue on its nodes"
    needed = hosts["scontrol"] or hosts["squeue"]
    yield check_result(NODES, "slurm programs", found or "all on PATH", warn=todo if needed else "")
    yield _check_submission(reports)


def check_node_limits(reports: RankReports, workers: int | None) -> Iterator[CheckResult]:
    """Check the smallest resources and limits that any rank has."""
    limits = [report.machine for report in reports.values()]
    yield check_umask(min((one.umask for one in limits), key=lambda umask: umask & 0o002), NODES)
    least = min(limits, key=lambda one: one.shared_free or 0)
    yield check_shared_memory(least.shared_total, least.shared_free, NODES)
    yield check_open_files(_smallest_limit([one.files for one in limits]), NODES)
    has_gpus = any(report.gpus.names for report in reports.values())
    yield check_locked_memory(_smallest_limit([one.locked for one in limits]), has_gpus)
    yield check_rank_cpus(min(one.cpus for one in limits), workers)


def check_locked_memory(locked: int, has_gpus: bool) -> CheckResult:
    """Check the limit of locked memory, which InfiniBand needs; only nodes with GPUs are expected to have it."""
    found = "no limit" if locked == UNLIMITED else f"{locked / 2**20:.1f} MiB"
    todo = "InfiniBand needs more: ask the site for `ulimit -l unlimited` on the nodes"
    return check_result(NODES, "locked memory", found, warn=todo if has_gpus and locked != UNLIMITED else "")


def check_rank_cpus(cpus: int, workers: int | None) -> CheckResult:
    """Check that a rank has one CPU for itself and one for each loader worker."""
    if workers is None:
        return check_result(NODES, "CPUs of a rank", f"at least {cpus}")
    todo = f"use --cpus-per-task {workers + 1}, or lower data.workers"
    found = f"at least {cpus}; needs 1 and {workers} for data.workers"
    return check_result(NODES, "CPUs of a rank", found, warn=todo if cpus < workers + 1 else "")


def check_gpus(reports: RankReports) -> CheckResult:
    """Check that torch sees the GPUs that Slurm assigned, that they are alike and support bf16."""
    blind = [report for report in reports.values() if report.gpus.promised and not report.gpus.names]
    if blind:
        found = f"{_rank_and_host(blind[0])} was assigned GPU {blind[0].gpus.promised}, but torch sees none"
        todo = "install torch for CUDA (torch.version.cuda must be set) and check the driver: nvidia-smi"
        return check_result(NODES, "GPUs", found, fail=todo)
    kinds, differing = _compare_ranks(
        {rank: ", ".join(report.gpus.names) or None for rank, report in reports.items()}, "none"
    )
    todo = "with different GPUs all ranks wait for the slowest: request one kind by --constraint or gres"
    if kinds == "none":
        return check_result(NODES, "GPUs", kinds)
    if all(report.gpus.bf16 for report in reports.values() if report.gpus.names):
        return check_result(NODES, "GPUs", f"{kinds}, bf16", warn=todo if differing else "")
    without = "use engine.precision=fp32: these GPUs do not support bf16"
    return check_result(NODES, "GPUs", f"{kinds}, no bf16", warn=todo if differing else without)


def check_rendezvous(reports: RankReports) -> CheckResult:
    """Return a failure with the reason why the ranks did not connect."""
    errors = [f"{_rank_and_host(report)}: {report.error}" for report in reports.values() if report.error]
    found = errors[0] if errors else "the job ended before the ranks were finished"
    todo = (
        "check that node names resolve to addresses that the other nodes reach (getent hosts NODE) and that no "
        "firewall blocks them, and set GLOO_SOCKET_IFNAME in the profile's env"
    )
    return check_result(NETWORK, "connection", found, fail=todo)


def check_network(connected: GroupReports, reports: RankReports) -> Iterator[CheckResult]:
    """Check the network: addresses, clocks and the speed of collectives."""
    addresses = sorted(
        {f"{reports[rank].host} {one.address} ({one.interface or '?'})" for rank, one in connected.items()}
    )
    yield check_result(NETWORK, "addresses", ", ".join(addresses[:4]) + (", ..." if len(addresses) > 4 else ""))
    if len(connected) == 1:
        yield unknown_result(NETWORK, "collectives", "not measured with one rank", "use more ranks")
        return
    yield check_clocks(connected, reports)
    for backend in dict.fromkeys(one.backend for one in connected[0].timings):
        yield check_collective_speed(backend, [one for one in connected[0].timings if one.backend == backend])


def clock_offsets(connected: GroupReports) -> dict[int, float]:
    """Return by how many seconds each clock is ahead of that of the lowest rank.

    This is the median over all-reduces, which all ranks leave at about the same time.
    """
    reference = connected[min(connected)].stamps
    return {
        rank: statistics.median(mine - theirs for mine, theirs in zip(one.stamps, reference, strict=True))
        for rank, one in connected.items()
    }


def check_clocks(connected: GroupReports, reports: RankReports) -> CheckResult:
    """Check how much the clocks differ."""
    offsets = clock_offsets(connected)
    low, high = min(offsets, key=lambda rank: offsets[rank]), max(offsets, key=lambda rank: offsets[rank])
    skew = offsets[high] - offsets[low]
    uncertainty = max(one.round_trip for one in connected.values()) / 2
    found = f"within {skew * 1e3:.1f} ms of each other, +- {uncertainty * 1e3:.1f} ms"
    ahead = f"{_rank_and_host(reports[high])} is ahead of {_rank_and_host(reports[low])}"
    todo = f"{ahead}: synchronise the clocks (chrony, ntp)"
    return check_result(NETWORK, "clocks", found, warn=todo if skew > MAX_SKEW_SECONDS else "")


def check_collective_speed(backend: str, timings: Sequence[CollectiveTiming]) -> CheckResult:
    """Check the latency (smallest size) and throughput (largest size) of a backend's collectives."""
    small, large = min(one.size for one in timings), max(one.size for one in timings)
    latency = max(one.seconds for one in timings if one.size == small)
    rate = min(large / 1e6 / one.seconds for one in timings if one.size == large)
    found = "; ".join(
        _describe_speed(name, timings, small, large) for name in dict.fromkeys(one.operation for one in timings)
    )
    slow = "slower than 1 Gbit/s" if rate < SLOW_MB_PER_SECOND else "small messages are slow"
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    todo = f"{slow}: are there fewer CPUs than ranks, or is it the wrong network? Set {variable} in the profile's env"
    is_slow = latency > SLOW_LATENCY_SECONDS or rate < SLOW_MB_PER_SECOND
    return check_result(NETWORK, backend, found, warn=todo if is_slow else "")


def check_shared_folder(connected: GroupReports, reports: RankReports) -> Iterator[CheckResult]:
    """Check that all nodes see the same folder, and its mkdir and write speed with all nodes at once."""
    yield _check_visibility(connected, reports)
    wins = [sum(one) for one in zip(*(one.won for one in connected.values()), strict=True)]
    yield check_exclusive_mkdir(wins, f"{len(connected)} ranks", SHARED)
    rates = {reports[rank].host: one.write_rate for rank, one in connected.items() if one.write_rate is not None}
    if rates:
        slowest = min(rates, key=lambda host: rates[host])
        together = f", {len(rates)} nodes at once" if len(rates) > 1 else ""
        yield check_write_rate(rates[slowest], f"64 MiB from {slowest}{together}", SHARED)


def _check_visibility(connected: GroupReports, reports: RankReports) -> CheckResult:
    blind = [rank for rank, one in connected.items() if one.seen < len(connected)]
    if blind:
        found = (
            f"{_rank_and_host(reports[blind[0]])} sees files of {connected[blind[0]].seen} of {len(connected)} ranks"
        )
        todo = "keep run folders on a file system that all nodes share: --run /shared/..."
        return check_result(SHARED, "shared", found, fail=todo)
    slowest = max(one.seen_seconds for one in connected.values())
    found = f"each rank sees the files of all {len(connected)} within {slowest:.1f} s"
    todo = "the file server is slow to show files of other nodes: the start of a run waits for it"
    return check_result(SHARED, "shared", found, warn=todo if slowest > SLOW_VISIBLE_SECONDS else "")


def _check_submission(reports: RankReports) -> CheckResult:
    refused = [report for report in reports.values() if report.submit]
    if not refused:
        return check_result(NODES, "sbatch on nodes", "allowed (sbatch --test-only)")
    reason = "not installed" if "sbatch" in refused[0].programs else refused[0].submit
    todo = "a chain submits its successor from a node: submit with --requeue self"
    return check_result(NODES, "sbatch on nodes", f"{refused[0].host}: {reason}", warn=todo)


def _smallest_limit(limits: Sequence[int]) -> int:
    return min(limits, key=lambda limit: float("inf") if limit == UNLIMITED else limit)


def _describe_speed(name: str, timings: Sequence[CollectiveTiming], small: int, large: int) -> str:
    seconds = {one.size: one.seconds for one in timings if one.operation == name}
    rate = large / 1e6 / seconds[large]
    return f"{name} {seconds[small] * 1e3:.2f} ms for {small >> 10} KiB, {rate:.0f} MB/s for {large >> 20} MiB"


def _compare_ranks(by_rank: Mapping[int, str | None], absent: str) -> tuple[str, list[int]]:
    """Return the most common value, with the ranks that differ and the value of the first, and these ranks."""
    texts = {rank: absent if value is None else value for rank, value in by_rank.items()}
    usual = Counter(texts.values()).most_common(1)[0][0]
    differing = [rank for rank, text in texts.items() if text != usual]
    if not differing:
        return usual, []
    return f"{usual}, but {texts[differing[0]]} on rank {_first_few(differing)}", differing


def _first_few(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:4])) + (f" and {len(items) - 4} more" if len(items) > 4 else "")


def _rank_and_host(report: RankReport) -> str:
    return f"rank {report.rank} ({report.host})"
