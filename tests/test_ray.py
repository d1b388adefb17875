"""The main job on a real Ray: submitted, literal, embedded; refused in one line; ended by real signals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.local_ray import environment, local_ray
from cluster.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parent.parent
RATE = ["--optimizer.learning-rate", "0.001"]  # a few steps on noise: the recipe's own would not be stable
SHORT = ["--num-epochs", "2", "--global-batch-size", "10"]


@pytest.fixture(scope="module")
def address():
    """A Ray of two CPUs, started in the checkout."""
    with local_ray(num_cpus=2, working_directory=ROOT) as address:
        yield address
    left = [
        p.info
        for p in psutil.process_iter(["cmdline"])
        if address.rsplit(":", 1)[1] in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []


def _submit(address: str, *command: str, working_dir: bool = True) -> subprocess.CompletedProcess:
    submit = ["ray", "job", "submit", "--address", address, *(["--working-dir", "."] if working_dir else []), "--"]
    return subprocess.run([*submit, *command], cwd=ROOT, env=environment(), capture_output=True, text=True)


def _error_line(answer: subprocess.CompletedProcess) -> str:
    assert answer.returncode != 0
    assert "Traceback" not in answer.stdout
    (line,) = {
        line for line in answer.stdout.splitlines() if line.startswith("error: ")
    }  # Ray repeats a failed job's log
    return line


@pytest.mark.parametrize("working_dir", [True, False], ids=["working-dir", "literal"])
def test_a_submitted_job_trains_with_two_workers(address, raw_dataset, tmp_path, working_dir):
    run = tmp_path / "run"
    arguments = ["--data", str(raw_dataset.path), "--run", str(run), "--workers", "2", *SHORT, *RATE]
    answer = _submit(address, "python", "jobs/train.py", *arguments, working_dir=working_dir)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "2 workers of 1 CPU on the cluster" in answer.stdout
    assert "val: loss" in answer.stdout and "img/s" in answer.stdout and "ETA" in answer.stdout
    assert RunFolder.open(run).result["num_steps"] == 8
    evaluated = subprocess.run(
        [sys.executable, "jobs/evaluate.py", "--data", raw_dataset.path, "--run", run],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert evaluated.stdout.splitlines()[-1].endswith("n=10")


def test_what_the_cluster_cannot_hold_names_the_way_out(address, raw_dataset, tmp_path):
    arguments = ["--data", str(raw_dataset.path), "--run", str(tmp_path / "run")]
    answer = _submit(address, "python", "jobs/train.py", *arguments, "--workers", "4")
    assert "can't hold 4 workers of 1 CPU" in _error_line(answer)
    assert _error_line(answer).endswith("use --workers 2, or --cpus-per-worker 0.5")
    assert not (tmp_path / "run").exists()
    answer = _submit(
        address, "python", "jobs/train.py", *arguments, *SHORT, *RATE, "--workers", "4", "--cpus-per-worker", "0.5"
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_a_wrong_interpreter_is_told_what_to_do(address):
    # Without site-packages (-S) the interpreter has nothing that a job needs.
    line = _error_line(_submit(address, "python", "-S", "jobs/train.py"))
    assert "a job runs the first `python` on the PATH that `ray start` had" in line


def test_a_relative_run_folder_would_be_lost(address, raw_dataset):
    line = _error_line(
        _submit(address, "python", "jobs/train.py", "--data", str(raw_dataset.path), "--run", "runs/mine")
    )
    assert "--run runs/mine is relative" in line


def test_an_error_in_a_worker_arrives_as_its_one_line(address, raw_dataset, tmp_path):
    arguments = ["--data", str(raw_dataset.path), "--run", str(tmp_path / "run"), "--optimizer.learning-rate", "1e12"]
    answer = _submit(address, "python", "jobs/train.py", *arguments, "--optimizer.warmup", "0", *SHORT)
    assert "lower the rate: --optimizer.learning-rate" in _error_line(answer)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_embedded_run_leaves_nothing_and_resumes(raw_dataset, tmp_path, signum):
    run = tmp_path / "run"
    command = [sys.executable, "jobs/train.py", "--data", raw_dataset.path, "--run", run, "--global-batch-size", "10"]
    command += ["--workers", "2", "--checkpoint-interval", "5", *RATE, "--num-epochs", "20"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if re.match(r"step +10/", line):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert not list(run.rglob(".*.tmp"))
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "resumed from a checkpoint" in finished.stdout
    assert RunFolder.open(run).result["num_steps"] == 82
