"""Ask every node that may hold a worker what it has, before anything starts: `cluster/preflight.py` as Ray tasks."""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pipeline.ray_executor  # noqa: F401  # first: it sets variables that ray reads as it is imported

# isort: split
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.local_ray import STOP_SECONDS
from cluster.placement import Placement
from cluster.preflight import (
    Finding,
    Node,
    NodeReport,
    Probe,
    Requirements,
    inspect_node,
    judge,
    messages,
    this_host,
    written_probe,
)
from pipeline.command import InputError

_ANSWER_SECONDS = 60.0
_LEAST_STOP_SECONDS = 20  # two steps and a checkpoint of a large net on a CPU


def check_nodes(
    requirements: Requirements, placement: Placement, is_local: bool, answer_seconds: float = _ANSWER_SECONDS
) -> None:
    """Check all nodes that may hold a worker, and say what may go wrong; within a session of Ray.

    Args:
        requirements: Of the run.
        placement: Of the workers.
        is_local: The Ray is an embedded local one, so that this process sees what workers will see.
        answer_seconds: That a node gets to answer.

    Raises:
        InputError: The run would fail; a line for each cause.
    """
    began = time.monotonic()
    nodes = dict(_nodes_for(placement))
    with written_probe(requirements.folder) as probe:
        if is_local:
            (only,) = nodes.values()
            driver = _inspect(dataclasses.replace(only, name="this machine"), requirements, probe)
            reports, findings = [driver], list[Finding]()
        else:
            driver = _inspect(Node(f"the driver's machine ({this_host()})"), requirements, probe)
            reports, findings = _ask(nodes, requirements, probe, answer_seconds)
    findings += judge(driver, reports, requirements)
    if not is_local:
        findings += _judge_stop()
    for line in messages(findings, "warning"):
        sys.stderr.write(f"warning: {line}\n")
    errors = messages(findings, "error")
    if errors:
        raise InputError("\n".join(errors))
    if not is_local:
        sys.stdout.write(
            f"{len(reports)} node{'s' * (len(reports) > 1)} checked in {time.monotonic() - began:.1f} s: the same "
            f"dataset, run folder and code, torch {driver.versions['torch']}, DALI {driver.versions['DALI']}\n"
        )


def _judge_stop() -> list[Finding]:
    """Return a warning where `ray job stop` would kill this job before its workers reach a checkpoint."""
    seconds = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")  # Ray's default
    if int(seconds) >= _LEAST_STOP_SECONDS:
        return []
    cause = f"`ray job stop` gives it {seconds} s to stop at a checkpoint"
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}})
    next_step = f"for more submit it with --runtime-env-json '{environment}'"
    return [Finding("warning", "this job", cause, next_step)]


def _nodes_for(placement: Placement) -> Iterator[tuple[str, Node]]:
    """Yield id and description of every node that may get a worker."""
    share = {"CPU": placement.cpus_per_worker, "GPU": float(placement.gpus_per_worker)}
    for node in ray.nodes():
        resources = node["Resources"]
        places = min(math.floor(resources.get(name, 0) / share[name] + 1e-9) for name in share if share[name])
        if node["Alive"] and places:
            address, name = node["NodeManagerAddress"], node["NodeName"]
            named = f"{node['NodeManagerHostname']} ({address if name == address else f'{name}, {address}'})"
            num_workers = min(places, placement.num_workers)
            yield (
                node["NodeID"],
                Node(f"node {named}", resources["CPU"], num_workers, num_workers * placement.gpus_per_worker),
            )


def _inspect(node: Node, requirements: Requirements, probe: Probe) -> NodeReport:
    """Be a task, or look at the driver's own machine."""
    own_node: Any = ray._private.worker._global_node  # Ray tells its temporary folder nowhere else
    return inspect_node(node, requirements, probe, Path(own_node.get_temp_dir_path()))


def _ask(
    nodes: dict[str, Node], requirements: Requirements, probe: Probe, answer_seconds: float
) -> tuple[list[NodeReport], list[Finding]]:
    """Run a task on each node; return what they answered, and a finding for each that did not.

    The tasks take no CPU: nodes that are busy with other jobs answer too.
    """
    task: Any = ray.remote(_inspect)
    tasks: dict[ray.ObjectRef[NodeReport], Node] = {}
    for node_id, node in nodes.items():
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        on_node = task.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        tasks[on_node.remote(node, requirements, probe)] = node
    answered, silent = ray.wait(list(tasks), num_returns=len(tasks), timeout=answer_seconds)
    reports, findings = [], []
    for reference in answered:
        try:
            reports.append(ray.get(reference))
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            cause = f"can't run this project's code ({lines[-1].strip()})"
            next_step = "submit with `--working-dir .`, and start its Ray from this project's environment"
            findings.append(Finding("error", tasks[reference].name, cause, next_step))
    for reference in silent:
        cause = f"does not answer within {answer_seconds:g} s"
        next_step = "look at it with `ray status`, and stop its Ray or start it anew"
        findings.append(Finding("error", tasks[reference].name, cause, next_step))
    return reports, findings
