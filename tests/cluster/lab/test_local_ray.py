"""A local Ray of several nodes: what is killed is soon missed, and nothing outlives the block."""

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import psutil
import pytest

from cluster.lab.local_ray import LocalRay, environment, local_ray
from cluster.lab.ray_node import is_alive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MODE = "import os; print(os.environ['RAY_AUTH_MODE'], os.environ['RAY_AUTH_TOKEN'])"
_NOTICED_SECONDS = 8.0  # 2 to 3 where the machine has nothing else to do


def _num_nodes(cluster: LocalRay) -> int:
    """Return the number of nodes that the cluster takes for alive."""
    request = urllib.request.Request(
        f"{cluster.address}/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE",
        headers={"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request) as answer:
        return int(json.load(answer)["data"]["result"]["num_filtered"])


def _wait_for_nodes(cluster: LocalRay, count: int) -> float:
    began = time.monotonic()
    while _num_nodes(cluster) != count:
        assert time.monotonic() - began < _NOTICED_SECONDS, f"the cluster does not have {count} nodes"
        time.sleep(0.1)
    return time.monotonic() - began


def _status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_its_job_server_answers_nobody_without_its_token_and_leaves_the_home_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")  # would go before `--address`
    with local_ray(num_cpus=1) as cluster:
        token = cluster.environment["RAY_AUTH_TOKEN"]
        jobs = f"{cluster.address}/api/jobs/"
        assert _status(jobs) == 401
        assert _status(jobs, Authorization="Bearer of-another-ray") == 403
        assert _status(jobs, Authorization=f"Bearer {token}") == 200
        submit = ["ray", "job", "submit", "--address", cluster.address, "--", sys.executable, "-c", MODE]
        refused = subprocess.run(submit, env=environment() | {"RAY_ADDRESS": ""}, capture_output=True, text=True)
        assert refused.returncode != 0 and "Authentication" in refused.stdout + refused.stderr
        answer = subprocess.run(submit, env=cluster.environment, capture_output=True, text=True)
        assert answer.returncode == 0 and f"token {token}" in answer.stdout, answer.stdout + answer.stderr
        words = [word for process in cluster.processes() for word in process.cmdline()]
        assert words and not any(token in word for word in words)  # which every user of the machine may read
    assert list(tmp_path.iterdir()) == []


def test_a_killed_node_is_soon_missed_and_nothing_is_left():
    with local_ray(num_cpus=0) as cluster:
        first, second, third = (cluster.add_node(1) for _ in range(3))
        _wait_for_nodes(cluster, 4)
        everything = cluster.processes()
        first.kill()
        assert first.processes() == []
        _wait_for_nodes(cluster, 3)
        (raylet,) = [process for process in second.processes() if process.name() == "raylet"]
        second.kill_raylet()
        psutil.wait_procs([raylet], timeout=5)
        assert third.processes() and not is_alive(raylet)
        _wait_for_nodes(cluster, 2)
        cluster.add_node(1)
        _wait_for_nodes(cluster, 3)
        everything += cluster.processes()
    assert [process for process in everything if is_alive(process)] == []


def test_a_long_tmpdir_and_a_proxy_are_no_obstacle(tmp_path, monkeypatch):
    folder = tmp_path / ("a-folder-of-a-batch-system-" * 4)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with local_ray(num_cpus=1) as cluster:
        assert cluster.environment["no_proxy"] == "localhost,127.0.0.1,::1"
