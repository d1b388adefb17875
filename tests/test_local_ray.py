"""A local Ray of several nodes: what is killed is soon missed, and nothing outlives the block."""

import json
import time
import urllib.request

import psutil
import pytest

from cluster.local_ray import LocalRay, is_alive, local_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

_NOTICED_SECONDS = 8.0  # 2 to 3 where the machine has nothing else to do


def _num_nodes(cluster: LocalRay) -> int:
    """Return the number of nodes that the cluster takes for alive."""
    with urllib.request.urlopen(
        f"{cluster.address}/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
    ) as answer:
        return int(json.load(answer)["data"]["result"]["num_filtered"])


def _wait_for_nodes(cluster: LocalRay, count: int) -> float:
    began = time.monotonic()
    while _num_nodes(cluster) != count:
        assert time.monotonic() - began < _NOTICED_SECONDS, f"the cluster does not have {count} nodes"
        time.sleep(0.1)
    return time.monotonic() - began


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
