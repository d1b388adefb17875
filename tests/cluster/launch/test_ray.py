"""The main job on a real Ray: submitted, literal, embedded; refused in one line; ended by real signals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from runs import entries, wait_for_step

from cluster import ledger
from cluster.lab.local_ray import LocalRay, local_ray
from cluster.run.run_folder import RunFolder
from pipeline.dataset import Dataset
from pipeline.paths import CHECKOUT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# A few steps on noise: the recipe's own rate would not be stable, and little is learnt.
RATE = ["--optimizer.learning-rate", "0.001", "--stuck-after-epochs", "100"]
SHORT = ["--num-epochs", "2", "--global-batch-size", "10"]


@pytest.fixture(scope="module")
def ray():
    """A Ray of two CPUs, started in the checkout."""
    with local_ray(num_cpus=2, working_directory=CHECKOUT) as cluster:
        yield cluster
    assert _processes_of(cluster.address) == []


def _processes_of(address: str) -> list[list[str]]:
    """Command lines that name the port of a Ray's job server."""
    port = address.rsplit(":", 1)[1]
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if any(port in word for word in command)]


def _submit(ray: LocalRay, *command: str, working_dir: bool = True) -> subprocess.CompletedProcess:
    submit = ["ray", "job", "submit", "--address", ray.address, *(["--working-dir", "."] if working_dir else []), "--"]
    return subprocess.run([*submit, *command], cwd=CHECKOUT, env=ray.environment, capture_output=True, text=True)


def _error_line(answer: subprocess.CompletedProcess) -> str:
    assert answer.returncode != 0
    assert "Traceback" not in answer.stdout
    (line,) = {
        line for line in answer.stdout.splitlines() if line.startswith("error: ")
    }  # Ray repeats a failed job's log
    return line


@pytest.mark.parametrize("working_dir", [True, False], ids=["working-dir", "literal"])
def test_a_submitted_job_trains_with_two_workers(ray, raw_dataset, tmp_path, working_dir):
    run = tmp_path / "run"
    arguments = ["--data", str(raw_dataset.path), "--run", str(run), "--workers", "2", *SHORT, *RATE]
    arguments += ["--micro-batch-size", "3"]
    answer = _submit(ray, "python", "jobs/train.py", *arguments, working_dir=working_dir)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "2 workers of 1 CPU on the cluster" in answer.stdout
    assert "val: loss" in answer.stdout and "img/s" in answer.stdout and "ETA" in answer.stdout
    assert RunFolder.open(run).result["num_steps"] == 8
    command = ["jobs/evaluate.py", "--data", str(raw_dataset.path), "--run", str(run)]
    alone = subprocess.run([sys.executable, *command], cwd=CHECKOUT, capture_output=True, text=True)
    assert alone.stdout.splitlines()[-1].endswith("n=10")
    result = run / "evaluations" / "val-centre" / "result.json"
    found = json.loads(result.read_text())
    result.unlink()
    together = _submit(ray, "python", *command, "--workers", "2", working_dir=working_dir)
    assert alone.stdout.splitlines()[-1] in together.stdout, together.stdout + together.stderr
    again = json.loads(result.read_text())
    assert again.pop("loss") == pytest.approx(found.pop("loss"), rel=1e-4)  # bfloat16, in batches of another size
    assert again == found


def test_what_the_cluster_cannot_hold_names_the_way_out(ray, raw_dataset, tmp_path):
    arguments = ["--data", str(raw_dataset.path), "--run", str(tmp_path / "run")]
    answer = _submit(ray, "python", "jobs/train.py", *arguments, "--workers", "4")
    assert "can't hold 4 workers of 1 CPU" in _error_line(answer)
    assert _error_line(answer).endswith("use --workers 2, or --cpus-per-worker 0.5")
    assert not (tmp_path / "run").exists()
    answer = _submit(
        ray, "python", "jobs/train.py", *arguments, *SHORT, *RATE, "--workers", "4", "--cpus-per-worker", "0.5"
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_a_wrong_interpreter_is_told_what_to_do(ray):
    # Without site-packages (-S) the interpreter has nothing that a job needs.
    line = _error_line(_submit(ray, "python", "-S", "jobs/train.py"))
    assert "a job runs the first `python` on the PATH that `ray start` had" in line


def test_a_relative_run_folder_would_be_lost(ray, raw_dataset):
    line = _error_line(_submit(ray, "python", "jobs/train.py", "--data", str(raw_dataset.path), "--run", "runs/mine"))
    assert "--run runs/mine is relative" in line


def test_an_error_in_a_worker_arrives_as_its_one_line(ray, raw_dataset, tmp_path):
    arguments = ["--data", str(raw_dataset.path), "--run", str(tmp_path / "run"), "--optimizer.learning-rate", "1e12"]
    answer = _submit(ray, "python", "jobs/train.py", *arguments, "--optimizer.warmup", "0", *SHORT)
    assert "lower the rate: --optimizer.learning-rate" in _error_line(answer)


def _start_embedded(dataset: Dataset, run: Path) -> tuple[list[str], subprocess.Popen]:
    """Start a run on a local Ray of its own and wait until it is past its first checkpoint."""
    command = [sys.executable, "jobs/train.py", "--data", str(dataset.path), "--run", str(run), "--workers", "2"]
    command += [
        "--global-batch-size",
        "10",
        "--checkpoint-interval",
        "5",
        "--checkpoint-seconds",
        "0",
        *RATE,
        "--num-epochs",
        "40",
    ]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(run, 10, process)
    return command, process


# What Ray 2.60 runs for a training beside its raylet: the actors of Ray Train, and two agents of the node.
ACTORS = {
    *("RayTrainWorker", "TrainController", "PlacementGroupCleaner", "SynchronizationActor"),
    *("DatasetManager", "_AutoscalingCoordinatorActor", "DashboardAgent", "RuntimeEnvAgent"),
}


def _actors_below(process: subprocess.Popen) -> dict[str, psutil.Process]:
    """One process of each class of Ray's actors; a title is `ray::CLASS`, or `ray::CLASS.METHOD` during a call."""
    children = psutil.Process(process.pid).children(recursive=True)
    titles = {child: re.match(r"ray::(\w+)", " ".join(child.cmdline())) for child in children}
    return {title[1]: child for child, title in titles.items() if title}


def _check_resumes(command: list[str], run: Path) -> None:
    """The same command goes on and finishes."""
    assert not list(run.rglob(".*.tmp"))
    finished = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "resumed from a checkpoint" in finished.stdout
    assert RunFolder.open(run).result["num_steps"] == 164


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_embedded_run_stops_at_a_checkpoint_leaves_nothing_and_resumes(raw_dataset, tmp_path, signum):
    command, process = _start_embedded(raw_dataset, tmp_path / "run")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "Traceback" not in errors
    assert psutil.wait_procs(children, timeout=10)[1] == []
    (stop,) = entries(RunFolder.open(tmp_path / "run"), "stop")
    assert RunFolder.open(tmp_path / "run").checkpoints.latest_step() == stop["step"]
    if signum == signal.SIGINT:
        _check_resumes(command, tmp_path / "run")


@pytest.mark.parametrize("actor", ["RayTrainWorker", "TrainController"])
def test_a_run_goes_on_without_a_killed_actor_and_consumes_each_sample_once(raw_dataset, tmp_path, actor):
    command, process = _start_embedded(raw_dataset, tmp_path / "run")
    actors = _actors_below(process)
    assert {name for name in actors if name != "IDLE"} == ACTORS
    actors[actor].kill()
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert re.search(r"a worker was lost \(.+\); going on from step \d+", output)
    assert psutil.wait_procs(list(actors.values()), timeout=10)[1] == []
    run = RunFolder.open(tmp_path / "run")
    (resume,) = entries(run, "resume")
    assert resume["step"] >= 5 and resume["num_rolled_back"] < 20
    assert ledger.main([str(run.path)]) == 0
    assert not list(run.path.rglob(".*.tmp"))
    again = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert again.returncode == 0 and "is finished already" in again.stdout


def test_a_shard_that_is_cut_while_it_is_read_is_told_as_such(raw_dataset, tmp_path):
    data = Dataset.open(shutil.copytree(raw_dataset.path, tmp_path / "data"))
    _, process = _start_embedded(data, tmp_path / "run")
    for shard in data.path.glob("train-*.tar"):
        os.truncate(shard, 0)
    output, errors = process.communicate(timeout=200)
    assert "a worker was lost (SIGBUS: a file that it had mapped, a shard or one in /dev/shm, was cut short" in output
    assert "python -m pipeline.verify DATASET" in output
    assert process.returncode == 2 and "error: " in errors and "Traceback" not in errors
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_job_stop_ends_at_a_checkpoint(ray, raw_dataset, tmp_path):
    run_path, name = tmp_path / "run", f"stop-{tmp_path.name}"
    arguments = ["--data", str(raw_dataset.path), "--run", str(run_path), "--workers", "2", *RATE]
    arguments += ["--global-batch-size", "10", "--num-epochs", "1000"]
    grace = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    submit = ["ray", "job", "submit", "--address", ray.address, "--submission-id", name, "--runtime-env-json", grace]
    command = [*submit, "--working-dir", ".", "--", "python", "jobs/train.py", *arguments]
    with subprocess.Popen(command, cwd=CHECKOUT, env=ray.environment, stdout=subprocess.PIPE, text=True) as process:
        wait_for_step(run_path, 10, process)
        subprocess.run(["ray", "job", "stop", "--address", ray.address, name], env=ray.environment, check=True)
        process.communicate(timeout=60)
    run = RunFolder.open(run_path)
    (stop,) = entries(run, "stop")
    assert run.checkpoints.latest_step() == stop["step"] >= 10


KILLED_PARENT = """
import os, signal, sys
from cluster.lab.local_ray import local_ray
with local_ray(num_cpus=1) as cluster:
    sys.stdout.write(cluster.address)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_parent_takes_its_ray_along():
    parent = subprocess.run([sys.executable, "-c", KILLED_PARENT], cwd=CHECKOUT, capture_output=True, text=True)
    assert parent.returncode == -signal.SIGKILL and parent.stdout.startswith("http://127.0.0.1:")
    deadline = time.monotonic() + 30
    while _processes_of(parent.stdout):
        assert time.monotonic() < deadline, "Ray outlived the process that started it"
        time.sleep(0.2)
