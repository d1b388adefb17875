"""Asks the nodes of a Ray cluster what they have: `node_checks.py` as Ray tasks."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.lab.local_ray import STOP_SECONDS
from cluster.launch.node_checks import Node, NodeReport, Probe, Requirements, inspect_node, this_host, written_probe
from cluster.launch.node_findings import Finding, judge, judge_disk
from cluster.worker.emulation import Trial, node_emulation
from pipeline.system.ray_quirks import temporary_folder

_LEAST_STOP_SECONDS = 20  # two steps and a checkpoint of a large net on a CPU


@dataclasses.dataclass(frozen=True)
class Answer:
    """A node's answer.

    Attributes:
        node_id: Id of the node.
        report: Report of the node; None where it can't give one, or did not in time.
        findings: Findings about the node.
    """

    node_id: str
    report: NodeReport | None
    findings: list[Finding]


@dataclasses.dataclass(frozen=True)
class _Inquiry:
    """Tasks that look at nodes, under way.

    Attributes:
        driver: Report of the driver's machine, to judge the answers by.
        tasks: Id and description of each task's node; those that have answered are taken out.
        ends: Time by `time.monotonic` at which the others are given up.
        probe: Removes the probe that the tasks look for.
    """

    driver: NodeReport
    tasks: dict["ray.ObjectRef[NodeReport]", tuple[str, Node]]
    ends: float
    probe: contextlib.ExitStack


class NodeInquiries:
    """Asks nodes by tasks that take no CPU, so that nodes which are busy with other jobs answer too.

    Args:
        requirements: Needs of the run.
        is_local: The Ray is an embedded local one, so that this process sees what workers will see.
        answer_seconds: Time for a node to answer.

    Attributes:
        driver_versions: Versions of Python and the libraries at the driver; empty before a node of a cluster is asked.
        driver_findings: Findings about the driver, which concern all nodes.
        job_findings: Findings about the submitted job.
    """

    def __init__(self, requirements: Requirements, is_local: bool, answer_seconds: float) -> None:
        self._requirements, self._is_local, self._answer_seconds = requirements, is_local, answer_seconds
        self._inquiries: list[_Inquiry] = []
        self._trial: Trial | None = None
        self.driver_versions: Mapping[str, str] = {}
        self.driver_findings: list[Finding] = []
        self.job_findings: list[Finding] = []

    def close(self) -> None:
        """Remove the probes that nodes may still look for."""
        for inquiry in self._inquiries:
            inquiry.probe.close()

    def expect_a_filled_disk(self) -> None:
        """Look for no more room on the shared disk: from now on the run fills it."""
        self._requirements = dataclasses.replace(self._requirements, num_bytes=0)

    def open_node_ids(self) -> set[str]:
        """Return the ids of nodes that have been asked and may still answer."""
        return {node_id for inquiry in self._inquiries for node_id, _ in inquiry.tasks.values()}

    def ask(self, nodes: Mapping[str, Node]) -> list[Answer]:
        """Begin to look at nodes, but for those that have been asked and may still answer.

        Returns:
            The answer of an embedded Ray's only node, which is given at once.

        Raises:
            InputError: The driver can't write to the shared folder.
            OSError: It can't look at its own folders.
        """
        open_node_ids = self.open_node_ids()
        new = {node_id: node for node_id, node in nodes.items() if node_id not in open_node_ids}
        if not new:
            return []
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(written_probe(self._requirements.folder))
            self._try_processor(new)
            if self._is_local:
                ((node_id, node),) = new.items()
                report = _inspect(
                    dataclasses.replace(node, name="this machine"), self._requirements, probe, self._trial
                )
                return [Answer(node_id, report, judge(report, report, self._requirements))]
            driver = _inspect(Node(f"the driver's machine ({this_host()})"), self._requirements, probe, None)
            self.driver_versions = driver.versions
            self.driver_findings = list(judge_disk(driver, self._requirements))
            self.job_findings = _judge_stop()
            tasks: dict[ray.ObjectRef[NodeReport], tuple[str, Node]] = {}
            for node_id, node in new.items():
                there = NodeAffinitySchedulingStrategy(node_id, soft=False)
                task: Any = ray.remote(_inspect).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
                tasks[task.remote(node, self._requirements, probe, self._trial)] = node_id, node
            ends = time.monotonic() + self._answer_seconds
            self._inquiries.append(_Inquiry(driver, tasks, ends, stack.pop_all()))
        return []

    def collect(self, deadline: float) -> Iterator[list[Answer]]:
        """Yield the answers that come until a moment, or all; of a node that is late, that it does not answer.

        Args:
            deadline: Moment by `time.monotonic`.

        Yields:
            Answers of nodes that were asked together. One that comes late is yielded when it comes.
        """
        for inquiry in self._inquiries:
            timeout = max(0.0, min(deadline, inquiry.ends) - time.monotonic())
            answered, _ = ray.wait(list(inquiry.tasks), num_returns=len(inquiry.tasks), timeout=timeout)
            answers = [self._answer(inquiry, reference) for reference in answered]
            if time.monotonic() >= inquiry.ends:
                answers += [self._silence(node_id, node) for node_id, node in inquiry.tasks.values()]
            if not inquiry.tasks:
                inquiry.probe.close()
            yield answers
        self._inquiries = [inquiry for inquiry in self._inquiries if inquiry.tasks]

    def _try_processor(self, nodes: Mapping[str, Node]) -> None:
        """Find out, once, whether a processor of this kind emulates bfloat16, where that matters to a node."""
        if self._trial is not None or not self._requirements.may_be_bfloat16:
            return
        if all(node.num_gpus for node in nodes.values()):
            return
        from cluster.worker.precision import try_processor  # here: it loads torch, which tasks on nodes do without

        self._trial = try_processor()

    def _answer(self, inquiry: _Inquiry, reference: "ray.ObjectRef[NodeReport]") -> Answer:
        node_id, node = inquiry.tasks.pop(reference)
        try:
            report = ray.get(reference)
        except RayError as error:
            lines = str(error).strip().splitlines()
            cause = f"can't run this project's code ({lines[-1].strip()})"
            next_step = "submit with `--working-dir .`, and start its Ray from this project's environment"
            return Answer(node_id, None, [Finding("error", node.name, cause, next_step)])
        return Answer(node_id, report, judge(report, inquiry.driver, self._requirements))

    def _silence(self, node_id: str, node: Node) -> Answer:
        cause = f"does not answer within {self._answer_seconds:g} s"
        next_step = "look at it with `ray status`, and stop its Ray or start it anew"
        return Answer(node_id, None, [Finding("error", node.name, cause, next_step)])


def _judge_stop() -> list[Finding]:
    """Return a warning where `ray job stop` would kill this job before its workers reach a checkpoint."""
    seconds = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")  # Ray's default
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}})
    next_step = f"for more submit it with --runtime-env-json '{environment}'"
    try:
        if int(seconds) >= _LEAST_STOP_SECONDS:
            return []
        cause = f"`ray job stop` gives it {seconds} s to stop at a checkpoint"
    except ValueError:
        cause = f"RAY_JOB_STOP_WAIT_TIME_S is {seconds}, and Ray takes a whole number of seconds for `ray job stop`"
    return [Finding("warning", "this job", cause, next_step)]


def _inspect(node: Node, requirements: Requirements, probe: Probe, trial: Trial | None) -> NodeReport:
    """Look at a node: inside a Ray task, or at the driver's own machine."""
    report = inspect_node(node, requirements, probe, temporary_folder())
    if not requirements.may_be_bfloat16 or not node.num_workers:
        return report
    return dataclasses.replace(report, emulation=node_emulation(node.name, node.num_gpus, trial))
