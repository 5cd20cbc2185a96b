import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError
from hsadml_dist.launch.doctor import probe_job
from hsadml_dist.launch.doctor.probe_job import PROBE_MODULE, probe_request, run_probe_job
from hsadml_dist.slurm.profiles import Container, Profile
from hsadml_dist.slurm.sbatch import render

PROFILE = Profile()


def request_for(folder=Path("/shared/x"), options=PROFILE, **changes):
    return probe_request(folder, options, **{"nodes": 2, "tasks_per_node": 3} | changes)


def test_script_is_that_of_a_training_with_the_probe_module():
    text = render(request_for(options=Profile(partition="gpu", requeue="chain", signal_lead=500)))
    for line in ("--nodes=2", "--ntasks-per-node=3", "--cpus-per-task=1", "--partition=gpu", "--time=10"):
        assert f"#SBATCH {line}\n" in text
    for setting in ("run_dir=/shared/x", "requeue=none", f"rank_module={PROBE_MODULE}"):
        assert f"{setting}\n" in text


def test_script_has_the_options_of_the_profile():
    container = Container(kind="apptainer", image="/images/h.sif")
    options = Profile(
        account="mri", cpus_per_task=4, modules=("cuda",), container=container, options=("--reservation=x",)
    )
    text = render(request_for(options=options))
    for part in (
        "--account=mri",
        "--cpus-per-task=4",
        "--reservation=x",
        "module load cuda",
        "apptainer exec",
        "/shared/x:/shared/x",
    ):
        assert part in text, part


@pytest.mark.parametrize(("max_seconds", "minutes"), [(300, "5"), (30, "1"), (86400, "10"), (None, "10")])
def test_time_limit_is_at_most_that_of_the_partition(max_seconds, minutes):
    assert request_for(max_seconds=max_seconds).time_limit == minutes


@pytest.fixture
def fake_slurm(tmp_path):
    """Programs that stand in for Slurm: the job takes the states in a file one by one; scancel is recorded."""

    def install(*states):
        (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
        (tmp_path / "sbatch").write_text("#!/bin/sh\necho 12\n")
        (tmp_path / "scontrol").write_text(
            f"#!/bin/sh\nset -- {tmp_path}/states\n/usr/bin/head -n 1 $1 | /usr/bin/sed s/^/JobState=/\n"
            "[ $(/usr/bin/wc -l <$1) = 1 ] || /usr/bin/sed -i 1d $1\n"
        )
        (tmp_path / "scancel").write_text(f"#!/bin/sh\necho $1 >>{tmp_path}/cancelled\n")
        for name in ("sbatch", "scontrol", "scancel"):
            (tmp_path / name).chmod(0o755)
        return {"PATH": str(tmp_path)}

    return install


def test_run_probe_job_waits_for_the_end_and_reads_reports(tmp_path, fake_slurm, reports, monkeypatch):
    monkeypatch.setattr(probe_job, "POLL_SECONDS", 0.01)
    (tmp_path / "rank-0000.json").write_text(json.dumps(asdict(reports[0])))
    (tmp_path / "slurm-12.out").write_text("one\nlast\n\n")
    logged = []
    env = fake_slurm("PENDING", "PENDING", "RUNNING", "FAILED")
    result = run_probe_job(request_for(tmp_path), 600, logged.append, env)
    assert result == ({0: reports[0]}, "last")
    assert logged == ["job 12: PENDING", "job 12: RUNNING", "job 12: FAILED"]
    assert not (tmp_path / "cancelled").exists()


def test_job_that_does_not_end_in_time_is_cancelled(tmp_path, fake_slurm, monkeypatch):
    monkeypatch.setattr(probe_job, "POLL_SECONDS", 0.01)
    with pytest.raises(ClusterError, match=r"12.*PENDING.*--timeout"):
        run_probe_job(request_for(tmp_path), 0.05, lambda text: None, fake_slurm("PENDING"))
    assert (tmp_path / "cancelled").read_text() == "12\n"


def test_interrupt_cancels_the_job(tmp_path, fake_slurm):
    def interrupt(text):
        if "PENDING" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_probe_job(request_for(tmp_path), 600, interrupt, fake_slurm("PENDING"))
    assert (tmp_path / "cancelled").read_text() == "12\n"


def test_wait_for_reports_returns_incomplete_reports_after_the_time(tmp_path, reports, monkeypatch):
    incomplete = replace(reports[0], together=None)
    (tmp_path / "rank-0000.json").write_text(json.dumps(asdict(incomplete)))
    monkeypatch.setattr(probe_job, "POLL_SECONDS", 0.01)
    assert probe_job.wait_for_reports(tmp_path, 0.05) == {0: incomplete}
    assert probe_job.wait_for_reports(tmp_path / "empty", 0.0) == {}
