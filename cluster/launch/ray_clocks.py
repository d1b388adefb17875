"""How far the clocks of a Ray cluster's nodes differ from this machine's."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.launch.ray_nodes import ray_nodes

_ANSWER_SECONDS = 20.0
_NUM_QUESTIONS = 3  # the first one starts a worker; the quickest answer is the most accurate


@dataclass(frozen=True)
class NodeClock:
    """A node's clock beside this machine's.

    Attributes:
        node: Host name and address of the node.
        offset_seconds: How far its clock is ahead; negative: behind. None: it did not answer.
        uncertainty_seconds: Half the time that the question took: the offset may be off by so much.
    """

    node: str
    offset_seconds: float | None = None
    uncertainty_seconds: float = 0.0


def clocks_of_nodes() -> list[NodeClock]:
    """Ask every node of the cluster that this process has joined for its time, by tasks that take no CPU."""
    with ThreadPoolExecutor(max_workers=16) as threads:
        return list(threads.map(_clock, ray_nodes().items()))


def _clock(of_node: tuple[str, dict[str, Any]]) -> NodeClock:
    node_id, node = of_node

    def tell_time() -> float:  # inside, so that it is sent whole: the node need not have this project's code
        return time.time()

    name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task: Any = ray.remote(tell_time).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    answers = []
    for _ in range(_NUM_QUESTIONS):
        asked = time.time()
        try:
            told = ray.get(task.remote(), timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayError:  # it is gone, does not answer in time, or can't run this
            return NodeClock(name)
        uncertainty = (time.time() - asked) / 2
        answers.append(NodeClock(name, told - asked - uncertainty, uncertainty))
    return min(answers, key=lambda answer: answer.uncertainty_seconds)
