"""The nodes of the Ray cluster that this process has joined, and which of them may get a worker."""

import math
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from cluster.launch.node_checks import Node
from cluster.launch.placement import Placement

_AGREE_SECONDS = 30.0  # for Ray to notice that a node is gone; by its defaults it takes about 20
_CONNECT_SECONDS = 2.0
_POLL_SECONDS = 0.5


def settled_nodes() -> list[dict[str, float]]:
    """Return the resources of each node, after Ray has had the time to notice which are gone."""
    deadline = time.monotonic() + _AGREE_SECONDS
    while True:
        nodes = ray_nodes()
        answering = answering_nodes(nodes)
        if len(answering) == len(nodes) or time.monotonic() > deadline:
            return [node["Resources"] for node in answering.values()]
        time.sleep(_POLL_SECONDS)


def ray_nodes() -> dict[str, dict[str, Any]]:
    """Return the nodes that Ray counts on, by their ids."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def answering_nodes(nodes: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return those nodes whose raylet takes a connection: Ray counts for a while on one that is gone."""
    with ThreadPoolExecutor(max_workers=16) as threads:
        answers = threads.map(_answers, nodes.values())
        return {node_id: node for (node_id, node), answers in zip(nodes.items(), answers, strict=True) if answers}


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def nodes_with_room(nodes: Mapping[str, Mapping[str, Any]], placement: Placement) -> Iterator[tuple[str, Node]]:
    """Yield id and description of every node that may get a worker of a placement."""
    share = {"CPU": placement.cpus_per_worker, "GPU": float(placement.gpus_per_worker)}
    for node_id, node in nodes.items():
        resources = node["Resources"]
        places = min(math.floor(resources.get(name, 0) / share[name] + 1e-9) for name in share if share[name])
        if places:
            address, name = node["NodeManagerAddress"], node["NodeName"]
            named = f"{node['NodeManagerHostname']} ({address if name == address else f'{name}, {address}'})"
            num_workers = min(places, placement.num_workers)
            yield (
                node_id,
                Node(f"node {named}", resources["CPU"], num_workers, num_workers * placement.gpus_per_worker),
            )
