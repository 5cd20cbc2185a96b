import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError
from hsadml_dist.launch.doctor import probe_job as job
from hsadml_dist.launch.doctor.probe_job import ProbeRequest, run_job, script
from hsadml_dist.slurm.profiles import Container, Profile
from hsadml_dist.slurm.site import Partition

ASKED = ProbeRequest(nodes=2, tasks_per_node=3, cpus_per_task=None, partition="gpu", profile=Profile())


def test_the_script_is_a_trainings_with_other_ranks():
    text = script(ASKED, Path("/shared/x"), None)
    assert f'"$python" -u -m {job.NODE_MODULE} "$run_dir"' in text
    assert f"{job.RANK_MODULE} " not in text
    for line in ("--nodes=2", "--ntasks-per-node=3", "--cpus-per-task=1", "--partition=gpu", "--time=10"):
        assert f"#SBATCH {line}\n" in text
    assert "run_dir=/shared/x\n" in text and "requeue=none\n" in text


def test_the_profile_counts_for_the_doctor_too():
    container = Container(kind="apptainer", image="/images/h.sif")
    profile = Profile(
        account="mri", cpus_per_task=4, modules=("cuda",), container=container, options=("--reservation=x",)
    )
    text = script(replace(ASKED, profile=profile), Path("/shared/x"), None)
    for part in (
        "--account=mri",
        "--cpus-per-task=4",
        "--reservation=x",
        "module load cuda",
        "apptainer exec",
        "/shared/x:/shared/x",
    ):
        assert part in text, part
    assert "--cpus-per-task=2\n" in script(replace(ASKED, profile=profile, cpus_per_task=2), Path("/x"), None)


def test_the_job_asks_for_no_more_time_than_the_partition_gives():
    assert "--time=5\n" in script(ASKED, Path("/x"), Partition(name="gpu", max_seconds=300))
    assert "--time=1\n" in script(ASKED, Path("/x"), Partition(name="gpu", max_seconds=30))
    assert "--time=10\n" in script(ASKED, Path("/x"), Partition(name="gpu", max_seconds=None))


@pytest.fixture
def slurm(tmp_path):
    """Programs that play Slurm: the job is in the states of a file, one a question; what is cancelled is noted."""

    def play(*states):
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

    return play


def test_the_job_is_waited_for_and_its_answers_are_read(tmp_path, slurm, answers, monkeypatch):
    monkeypatch.setattr(job, "LOOK_SECONDS", 0.01)
    (tmp_path / "rank-0000.json").write_text(json.dumps(asdict(answers[0])))
    (tmp_path / "slurm-12.out").write_text("one\nlast\n\n")
    said = []
    env = slurm("PENDING", "PENDING", "RUNNING", "FAILED")
    assert run_job("#!/bin/sh\n", tmp_path, 60, said.append, env) == ({0: answers[0]}, "last")
    assert said == ["job 12: PENDING", "job 12: RUNNING", "job 12: FAILED"]
    assert not (tmp_path / "cancelled").exists()


def test_a_job_that_does_not_end_in_time_is_cancelled(tmp_path, slurm, monkeypatch):
    monkeypatch.setattr(job, "LOOK_SECONDS", 0.01)
    with pytest.raises(ClusterError, match="job 12 was still PENDING when --timeout was over"):
        run_job("#!/bin/sh\n", tmp_path, 0.05, lambda text: None, slurm("PENDING"))
    assert (tmp_path / "cancelled").read_text() == "12\n"


def test_an_interrupt_cancels_the_job(tmp_path, slurm):
    def interrupt(text):
        if "PENDING" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job("#!/bin/sh\n", tmp_path, 60, interrupt, slurm("PENDING"))
    assert (tmp_path / "cancelled").read_text() == "12\n"


def test_answers_that_are_slow_to_be_seen_are_waited_for(tmp_path, answers, monkeypatch):
    half = replace(answers[0], together=None)
    (tmp_path / "rank-0000.json").write_text(json.dumps(asdict(half)))
    monkeypatch.setattr(job, "LOOK_SECONDS", 0.01)
    assert job.wait_for_reports(tmp_path, 0.05) == {0: half}
    assert job.wait_for_reports(tmp_path / "empty", 0.0) == {}
