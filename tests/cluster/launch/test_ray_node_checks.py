"""The preflight on a real Ray of several nodes, some of which see another file system than the driver."""

import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

from ray._private.authentication_test_utils import reset_auth_token_state
from ray._raylet import GcsClient
from runs import entries

from cluster.lab.local_ray import environment, local_ray
from cluster.lab.ray_node import free_port
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Launched, only, read_launches
from pipeline.paths import CHECKOUT
from pipeline.system.ray_token import private_token

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
mounts = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")

OPTIONS = ["--num-cpus=1", "--disable-usage-stats", "--node-ip-address=127.0.0.1", "--block"]
OPTIONS += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]


def _num_nodes() -> int:
    return sum(node.state == 0 for node in GcsClient(address=address()).get_all_node_info(timeout=10).values())


@functools.cache
def address() -> str:
    """Return the address of the head, chosen when it is needed: until then, other tests could take its port."""
    return f"127.0.0.1:{free_port()}"


@contextlib.contextmanager
def _node(*options: str, hidden: Path | None = None):
    """Run a node of Ray while the block runs; an empty folder lies over `hidden` for its processes alone."""
    command = [str(Path(sys.executable).with_name("ray")), "start", *options, *OPTIONS]
    if hidden is not None:
        script = f"mount -t tmpfs none {shlex.quote(str(hidden))} && exec {shlex.join(command)}"
        command = ["unshare", "--mount", "sh", "-c", script]
    before = 0 if "--head" in options else _num_nodes()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd="/", env=environment(), **quiet) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None and time.monotonic() < deadline, "a node of Ray did not start"
                with contextlib.suppress(Exception):  # the head does not listen yet
                    if _num_nodes() > before:
                        break
                time.sleep(0.2)
            yield process
        finally:
            processes = []
            with contextlib.suppress(psutil.NoSuchProcess):  # it did not start
                processes = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for each in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.terminate()
            for each in psutil.wait_procs(processes, timeout=5)[1]:
                each.kill()


@pytest.fixture(scope="module", autouse=True)
def token():
    """This process, too, counts the nodes of a Ray that has a token."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in private_token().items():
            patch.setenv(name, value)
        reset_auth_token_state()
        yield
    reset_auth_token_state()


@pytest.fixture(scope="module")
def head(token):
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Unix sockets below it may have 107 characters
    with _node("--head", f"--port={address().partition(':')[2]}", "--include-dashboard=false", f"--temp-dir={folder}"):
        yield
    shutil.rmtree(folder, ignore_errors=True)


def _dry_run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "jobs/train.py", *map(str, arguments), "--dry-run"]
    own = {"RAY_ADDRESS": address()}
    return subprocess.run(command, cwd=CHECKOUT, env=environment() | own, capture_output=True, text=True, timeout=120)


def test_nodes_that_are_alike_are_counted_and_nothing_remains(head, raw_dataset, tmp_path):
    with _node(f"--address={address()}"):
        answer = _dry_run("--data", raw_dataset.path, "--run", tmp_path / "run")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("2 nodes checked in ")
    assert "would train small_demo" in answer.stdout and "2 workers of 1 CPU on the cluster" in answer.stdout
    assert list(tmp_path.iterdir()) == []


@mounts
def test_a_node_that_sees_neither_data_nor_run_folder_is_named(head, raw_dataset, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    run = hidden / "run"
    with _node(f"--address={address()}", "--node-name=blind", hidden=hidden):
        cause, way_out = _dry_run("--data", raw_dataset.path, "--run", run).stderr.splitlines()
        assert cause.startswith("error: node ") and "(blind, " in cause
        assert f"{run} is not the folder that the driver sees under this path; mount the shared" in cause
        assert way_out.startswith("error: the cluster can't hold 2 workers of 1 CPU: ") and "use --workers 1" in way_out
        without = _dry_run("--data", raw_dataset.path, "--run", run, "--workers", "1:2")
        assert without.returncode == 0, without.stderr
        assert without.stderr == cause.replace("error: ", "warning: left out: ") + "\n"
        assert without.stdout.startswith("1 node checked in ") and "1 worker of 1 CPU on the cluster" in without.stdout
        (hidden / "data").symlink_to(raw_dataset.path)
        answer = _dry_run("--data", hidden / "data", "--run", run)
    data, folder, _ = answer.stderr.splitlines()
    assert "(blind, " in data and f"dataset {hidden / 'data'} can't be read there (No such file" in data
    assert "is not the folder that the driver sees" in folder
    assert answer.returncode == 2
    assert [path.name for path in hidden.iterdir()] == ["data"]


@mounts
def test_a_node_without_the_code_is_told_to_take_it_along(head, raw_dataset, tmp_path):
    with _node(f"--address={address()}", hidden=CHECKOUT / "cluster"):
        answer = _dry_run("--data", raw_dataset.path, "--run", tmp_path / "run")
    line, _ = answer.stderr.splitlines()
    assert "can't run this project's code (" in line and "No module named 'cluster" in line
    assert line.endswith("submit with `--working-dir .`, and start its Ray from this project's environment")


SILENT = """
import sys
from pathlib import Path
from cluster.launch.placement import WorkerRange, place_workers
from cluster.launch.node_checks import Requirements
from cluster.launch.ray_launch import training_session
from cluster.launch.ray_node_checks import FitNodes
from pipeline.command import run_command

def main(argv):
    path = Path(sys.argv[1])
    requirements = Requirements(dataset_path=path, dataset_sha256="", folder=path)
    with training_session() as is_local, FitNodes(requirements, is_local, answer_seconds=5) as nodes:
        nodes.place(lambda resources: place_workers(resources, WorkerRange(2, 2), 1.0))
    return 0

run_command(main)
"""


def test_a_node_that_hangs_does_not_hang_the_job(head, tmp_path):
    (tmp_path / "dataset.json").write_text('{"files": {}}')
    with _node(f"--address={address()}", "--node-name=frozen") as process:
        raylet = next(p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "raylet")
        raylet.send_signal(signal.SIGSTOP)
        try:
            command, own = [sys.executable, "-c", SILENT, str(tmp_path)], {"RAY_ADDRESS": address()}
            answer = subprocess.run(command, cwd=CHECKOUT, env=environment() | own, capture_output=True, text=True)
        finally:
            raylet.send_signal(signal.SIGCONT)
    silent = [line for line in answer.stderr.splitlines() if "does not answer within 5 s" in line]
    assert len(silent) == 1 and "(frozen, " in silent[0], answer.stderr
    assert answer.returncode == 2


def _workers() -> list[psutil.Process]:
    """The training workers of the Ray of these tests."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


@mounts
@pytest.mark.parametrize("workers", ["2", "1:3"])
def test_a_newcomer_that_is_not_fit_does_not_end_a_run(head, raw_dataset, tmp_path, workers):
    hidden = tmp_path / "hidden"
    data = shutil.copytree(raw_dataset.path, hidden / "data")
    command = [sys.executable, "jobs/train.py", "--data", data, "--run", hidden / "run", "--workers", workers]
    command += [
        "--global-batch-size",
        "10",
        "--checkpoint-interval",
        "5",
        "--checkpoint-seconds",
        "0",
        "--num-epochs",
        "60",
    ]
    command += ["--optimizer.learning-rate", "0.001", "--stuck-after-epochs", "100"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        _node(f"--address={address()}"),
        subprocess.Popen(command, cwd=CHECKOUT, env=environment() | {"RAY_ADDRESS": address()}, **pipes) as process,
    ):
        for line in process.stdout:
            if line.split()[:1] == ["step"]:
                break
        with _node(f"--address={address()}", "--node-name=blind", hidden=hidden):
            _, second = _workers()
            second.kill()
            output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    left_out = [line for line in errors.splitlines() if "left out: " in line]
    assert len(left_out) == len(set(left_out)) == 2 and all("(blind, " in line for line in left_out)
    assert "a worker was lost (" in output and "checkpoint to take them in" not in output
    run = RunFolder.open(hidden / "run")
    assert only(Launched, read_launches(run.launches_path)) == [Launched(num_workers=2)] * 2
    assert {entry["world_size"] for entry in entries(run, "start")} == {2}


SLOW_END = """
import signal, sys, time
def end(signum, frame):
    time.sleep(5)
    open(sys.argv[1], "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open(sys.argv[1] + ".ready", "w").close()
time.sleep(60)
"""


def test_a_stopped_job_gets_the_time_that_the_submit_line_asks_for(tmp_path, monkeypatch):
    script = tmp_path / "slow_end.py"
    script.write_text(SLOW_END)
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "3")  # Ray's own default, in place of a local Ray's
    with local_ray(num_cpus=1) as ray:
        address = ray.address
        client = [sys.executable, "-m", "jobs.preflight", "--address", address]
        told = subprocess.run(client, cwd=CHECKOUT, env=ray.environment, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        words = shlex.split(told.stdout.partition("ray job submit")[2])
        own = words[words.index("--runtime-env-json") :][:2]
        for name, options in [("patient", own), ("hasty", [])]:
            mark = tmp_path / name
            submit = ["ray", "job", "submit", "--address", address, "--no-wait", "--submission-id", name, *options]
            subprocess.run(
                [*submit, "--", "python", script, mark], env=ray.environment, check=True, capture_output=True
            )
            while not mark.with_suffix(".ready").exists():
                time.sleep(0.1)
            stop = ["ray", "job", "stop", "--address", address, name]
            subprocess.run(stop, env=ray.environment, check=True, capture_output=True)
    assert (tmp_path / "patient").exists()  # ended by itself
    assert not (tmp_path / "hasty").exists()  # killed after Ray's 3 s
