"""The offline stage on a real Ray: the same bytes as local processes, through real jobs and real signals."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from cluster.lab.local_ray import LocalRay, environment, local_ray
from pipeline.paths import CHECKOUT
from tests.pipeline.offline.test_sharding import digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OPTIONS = ["--size", "224", "--samples-per-shard", "25"]


@pytest.fixture(scope="module")
def ray():
    """A Ray of two CPUs, started in the checkout."""
    with local_ray(num_cpus=2, working_directory=CHECKOUT) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """400 pictures in four classes, large enough that a shard takes a moment."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(400):
        path = folder / f"class{number % 4}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((480 + number, 640), 50).convert("RGB").save(path, quality=95)
    return folder


@pytest.fixture(scope="module")
def local(source, tmp_path_factory):
    """What local processes write."""
    out = tmp_path_factory.mktemp("local") / "out"
    subprocess.run([sys.executable, "-m", "pipeline.shard", source, out, *OPTIONS], cwd=CHECKOUT, check=True)
    return digest(out)


def _submit(ray: LocalRay, *command: str, **options) -> subprocess.Popen:
    submit = ["ray", "job", "submit", "--address", ray.address, "--working-dir", ".", "--", *command]
    return subprocess.Popen(
        submit,
        cwd=CHECKOUT,
        env=ray.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def _shard(ray: LocalRay, source: Path, out: Path) -> subprocess.Popen:
    return _submit(ray, "python", "-m", "pipeline.shard", str(source), str(out), "--executor", "ray", *OPTIONS)


def _wait_until_under_way(out: Path, job: subprocess.Popen) -> None:
    """Wait until one shard is final and another is being written."""
    while not (list(out.glob("*.tar")) and list(out.glob(".*.tar.*.tmp"))):
        assert job.poll() is None, f"the job ended before it could be disturbed: {job.stdout.read()}"
        time.sleep(0.01)


def _drivers(out: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "pipeline.shard" in words and str(out) in words and "submit" not in words and "-c" not in words:
            found.append(process)
    return found


def _writing(out: Path) -> list[psutil.Process]:
    """Processes that are writing a shard of `out`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(file.path.startswith(str(out)) and ".tar." in file.path for file in process.open_files()):
                found.append(process)
    return found


def test_a_submitted_job_writes_the_same_bytes(ray, source, local, tmp_path):
    job = _shard(ray, source, tmp_path / "out")
    output = job.communicate()[0]
    assert job.returncode == 0, output
    assert "17/17 shards" in output and "MB/s" in output
    assert digest(tmp_path / "out") == local


def test_a_killed_task_is_run_again_by_ray(ray, source, local, tmp_path):
    job = _shard(ray, source, tmp_path / "out")
    _wait_until_under_way(tmp_path / "out", job)
    while not (tasks := _writing(tmp_path / "out")):
        assert job.poll() is None, "the job ended before it could be disturbed"
    tasks[0].kill()
    output = job.communicate()[0]
    assert job.returncode == 0, output
    assert digest(tmp_path / "out") == local


def test_a_killed_driver_is_followed_by_the_same_command(ray, source, local, tmp_path):
    job = _shard(ray, source, tmp_path / "out")
    _wait_until_under_way(tmp_path / "out", job)
    drivers = _drivers(tmp_path / "out")
    assert drivers
    for driver in drivers:
        driver.kill()
    job.communicate(timeout=60)
    assert job.returncode != 0
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".partial").glob("*-??????.npz")}
    assert len(finished) < 17
    job = _shard(ray, source, tmp_path / "out")
    output = job.communicate()[0]
    assert job.returncode == 0, output
    assert digest(tmp_path / "out") == local


def test_a_relative_output_would_be_lost(ray, source):
    job = _submit(ray, "python", "-m", "pipeline.shard", str(source), "mine", "--executor", "ray")
    output = job.communicate()[0]
    assert job.returncode != 0
    assert "error: OUT mine is relative" in output


RAISING = """
from pipeline.command import run_command
from pipeline.offline.ray_executor import ray_map
def fail(item):
    raise OSError(28, "No space left on device", "shard")
def main(argv):
    with ray_map(fail, [1, 2, 3], 2) as results:
        return sum(results)
run_command(main)
"""


def test_an_error_of_a_task_arrives_as_its_one_line(ray):
    job = _submit(ray, "python", "-c", RAISING)
    output = job.communicate()[0]
    assert job.returncode != 0
    assert "error: No space left on device: shard" in output and "Traceback" not in output


def test_without_a_cluster_one_line_says_so(source, tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "pipeline.shard", source, tmp_path / "out", "--executor", "ray", *OPTIONS],
        cwd=CHECKOUT,
        env=environment() | {"RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert "error: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1; start it, or unset the variable" in answer.stderr
    assert "Traceback" not in answer.stderr
