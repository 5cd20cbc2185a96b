import json
import subprocess
import time

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm.job_records import JOBS_FILE, JobRecord, read_job_records, record_job


def test_jobs_come_back_in_order_whoever_wrote_them(tmp_path):
    run = RunFolder(tmp_path)
    began = time.time()
    record_job(run, "12", "chain")
    # As a batch script does.
    line = '{"job": "13", "requeue": "chain", "after": "12", "backend": "sbatch", "time": 2.5}'
    subprocess.run(["sh", "-c", f"printf '%s\\n' '{line}' >>{tmp_path / JOBS_FILE}"], check=True)
    record_job(run, "14_3", "self", "submitit")
    first, second, third = read_job_records(run)
    assert (first.job, first.requeue, first.after, first.backend) == ("12", "chain", None, "sbatch")
    assert began <= first.time <= time.time()
    assert second == JobRecord(job="13", requeue="chain", after="12", time=2.5)
    assert (third.job, third.requeue, third.backend) == ("14_3", "self", "submitit")
    assert all(json.loads(text) for text in (tmp_path / JOBS_FILE).read_text().splitlines())


def test_a_run_without_jobs_has_none(tmp_path):
    assert read_job_records(RunFolder(tmp_path)) == []
