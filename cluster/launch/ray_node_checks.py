"""Which nodes of a Ray cluster are fit for a run: `node_checks.py` as Ray tasks, before a node gets a worker."""

import contextlib
import dataclasses
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.lab.local_ray import STOP_SECONDS
from cluster.launch.node_checks import (
    Finding,
    Node,
    NodeReport,
    Probe,
    Requirements,
    inspect_node,
    judge,
    judge_disk,
    messages,
    this_host,
    written_probe,
)
from cluster.launch.placement import NoPlacement, Place, Placement
from cluster.worker.emulation import Emulation, Trial, node_emulation
from pipeline.command import InputError
from pipeline.system.os_errors import as_input_error
from pipeline.system.ray_quirks import temporary_folder

_ANSWER_SECONDS = 60.0
_AGAIN_SECONDS = 60.0  # until a node that was not fit, or did not answer, is asked once more: it may have been mended
_AGREE_SECONDS = 30.0  # that Ray gets to notice that a node is gone; by its defaults it takes about 20
_CONNECT_SECONDS = 2.0
_POLL_SECONDS = 0.5
_LEAST_STOP_SECONDS = 20  # two steps and a checkpoint of a large net on a CPU


def settled_nodes() -> list[dict[str, float]]:
    """Return the resources of each node, after Ray has had the time to notice which are gone."""
    deadline = time.monotonic() + _AGREE_SECONDS
    while True:
        nodes = _nodes_of_ray()
        answering = _answering(nodes)
        if len(answering) == len(nodes) or time.monotonic() > deadline:
            return [node["Resources"] for node in answering.values()]
        time.sleep(_POLL_SECONDS)


def _nodes_of_ray() -> dict[str, dict[str, Any]]:
    """Return the nodes that Ray counts on, by their ids."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _answering(nodes: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
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


@dataclasses.dataclass(frozen=True)
class _Inquiry:
    """Tasks that look at nodes, under way.

    Attributes:
        driver: What the driver's machine has, to judge the answers by.
        tasks: Id and description of each task's node; those that have answered are taken out.
        ends: When those that have not are given up, by `time.monotonic`.
        probe: Removes the probe that the tasks look for.
    """

    driver: NodeReport
    tasks: dict["ray.ObjectRef[NodeReport]", tuple[str, Node]]
    ends: float
    probe: contextlib.ExitStack


@dataclasses.dataclass(frozen=True)
class _LeftOut:
    """A node that is not fit: why, and until when it is not asked again."""

    findings: list[Finding]
    until: float


class FitNodes:
    """Finds the nodes that are fit for a run, within a session of Ray; leaving the block ends what is under way.

    A node is asked when it may get a worker, and never again once it was found fit. One that was not is left out, which
    is said once for each cause, and asked again after a minute. Where a run computes in bfloat16, nodes that would
    emulate it are left out if the others suffice.

    Args:
        requirements: Of the run.
        is_local: The Ray is an embedded local one, so that this process sees what workers will see.
        answer_seconds: That a node gets to answer.
        prefers_native: Nodes that emulate bfloat16 are left out if the others suffice.
    """

    def __init__(
        self,
        requirements: Requirements,
        is_local: bool,
        answer_seconds: float = _ANSWER_SECONDS,
        prefers_native: bool = False,
    ) -> None:
        self._prefers_native = prefers_native
        self._emulations: dict[str, Emulation] = {}
        self._trial: Trial | None = None
        self._gpus_per_worker: int | None = None  # of the first placement, and so of all
        self._requirements, self._is_local, self._answer_seconds = requirements, is_local, answer_seconds
        self._fit: set[str] = set()
        self._left_out: dict[str, _LeftOut] = {}
        self._of_driver: list[Finding] = []
        self._inquiries: list[_Inquiry] = []
        self._driver_versions: Mapping[str, str] = {}
        self._said: set[Finding] = set()

    def __enter__(self) -> "FitNodes":
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the probes that nodes may still look for."""
        for inquiry in self._inquiries:
            inquiry.probe.close()

    def place(self, place: Place, wait_seconds: float | None = None, needs_all: bool = False) -> Placement:
        """Return a placement on nodes that are fit.

        Args:
            place: Says how to place workers on nodes.
            wait_seconds: That nodes get to answer before workers are placed without them; None: all that they may take.
            needs_all: No node that may get a worker may be left out.

        Raises:
            InputError: The fit nodes do not suffice: a line for each cause that a node is left out, and what there is.
        """
        try:
            return self._placed(place, wait_seconds, needs_all)
        except RayError as error:
            cause = str(error).strip().partition("\n")[0]
            raise NoPlacement(f"Ray does not say which nodes there are ({cause}); see `ray status`") from error

    def _placed(self, place: Place, wait_seconds: float | None, needs_all: bool) -> Placement:
        began, known = time.monotonic(), set(self._fit)
        deadline = math.inf if wait_seconds is None else began + wait_seconds
        self._collect(began)
        while True:
            nodes = _answering(_nodes_of_ray())
            usable = {node_id: node for node_id, node in nodes.items() if self._may_be_used(node_id, node)}
            placement = self._tried(place, usable, nodes)
            holders = dict(_holders(usable, placement))
            unknown = {node_id: node for node_id, node in holders.items() if node_id not in self._fit}
            self._ask(unknown)
            if not unknown or time.monotonic() >= deadline:
                break
            self._collect(deadline)
        if unknown:
            usable = {node_id: node for node_id, node in usable.items() if node_id in self._fit}
            placement = self._tried(place, usable, nodes)
            holders = dict(_holders(usable, placement))
        if self._prefers_native and not self._emulations.keys().isdisjoint(holders):
            asked = {node_id: usable[node_id] for node_id in holders}
            placement, holders = self._without_emulation(place, asked, placement, holders)
        if self._of_driver or (needs_all and self._findings(nodes)):
            more = [] if self._of_driver else [f"to run without what is not fit, use --workers {placement.num_workers}"]
            raise NoPlacement("\n".join([*self._causes(nodes), *more]))
        self._say(nodes, len(self._fit - known), time.monotonic() - began)
        self._requirements = dataclasses.replace(self._requirements, num_bytes=0)  # from now on the run fills its disk
        self._gpus_per_worker = placement.gpus_per_worker
        return dataclasses.replace(placement, node_ids=tuple(holders))

    def prefer_native(self) -> None:
        """Leave out nodes that emulate bfloat16 from now on, if the others suffice."""
        self._prefers_native = True

    def emulations(self, placement: Placement) -> list[Emulation]:
        """Return the nodes of a placement that would emulate bfloat16."""
        return [self._emulations[node_id] for node_id in placement.node_ids or () if node_id in self._emulations]

    def _without_emulation(
        self, place: Place, asked: Mapping[str, Any], placement: Placement, holders: dict[str, Node]
    ) -> tuple[Placement, dict[str, Node]]:
        """Return a placement on nodes that compute in bfloat16 natively, and these; the one given if they can't do."""
        native = {node_id: node for node_id, node in asked.items() if node_id not in self._emulations}
        emulations = [emulation for node_id, emulation in self._emulations.items() if node_id in holders]
        try:
            without = place([node["Resources"] for node in native.values()])
        except NoPlacement:
            without = None
        if without is None or without.gpus_per_worker != placement.gpus_per_worker:
            if self._gpus_per_worker is not None:  # at first, whoever chooses the precision says it
                self._warn(
                    [Finding("warning", e.device, e.effect, "the other nodes do not suffice") for e in emulations]
                )
            return placement, holders
        self._warn([Finding("warning", e.device, e.effect, "left out, since the others suffice") for e in emulations])
        return without, dict(_holders(native, without))

    def _is_left_out(self, node_id: str) -> bool:
        """Return whether a node is not to be used or asked for now; one that still owes an answer is not."""
        if node_id not in self._left_out:
            return False
        return time.monotonic() < self._left_out[node_id].until or node_id in self._asked()

    def _asked(self) -> set[str]:
        """Return the ids of nodes that have been asked and may still answer."""
        return {node_id for inquiry in self._inquiries for node_id, _ in inquiry.tasks.values()}

    def _may_be_used(self, node_id: str, node: Mapping[str, Any]) -> bool:
        """Return whether workers may be placed on a node: a run on CPUs does not change to GPUs that join it."""
        joins_with_gpus = self._gpus_per_worker == 0 and node["Resources"].get("GPU", 0) > 0
        return not joins_with_gpus and not self._is_left_out(node_id)

    def _findings(self, nodes: Mapping[str, Any]) -> list[Finding]:
        """Return why nodes of those that are there are left out."""
        left_out = (self._left_out[node_id] for node_id in nodes if self._is_left_out(node_id))
        return [finding for each in left_out for finding in each.findings]

    def _causes(self, nodes: Mapping[str, Any]) -> list[str]:
        return messages([*self._of_driver, *self._findings(nodes)], "error")

    def _tried(self, place: Place, usable: Mapping[str, Any], nodes: Mapping[str, Any]) -> Placement:
        """Place workers on usable nodes; where they do not suffice, say why others were left out, too."""
        try:
            return place([node["Resources"] for node in usable.values()])
        except NoPlacement as error:
            causes = self._causes(nodes)
            raise NoPlacement("\n".join([*causes, *([str(error)] if usable or not causes else [])])) from None

    def _say(self, nodes: Mapping[str, Any], num_new: int, seconds: float) -> None:
        """Say how many nodes were found fit, and what has not been said of those that were not."""
        for line in messages(self._unsaid(self._findings(nodes)), "error"):
            sys.stderr.write(f"warning: left out: {line}\n")
        if num_new and not self._is_local:
            versions = self._driver_versions
            sys.stdout.write(
                f"{num_new} node{'s' * (num_new > 1)} checked in {seconds:.1f} s: the same dataset, run folder and "
                f"code, torch {versions['torch']}, DALI {versions['DALI']}\n"
            )
            sys.stdout.flush()

    def _ask(self, nodes: Mapping[str, Node]) -> None:
        """Begin to look at nodes, but for those that have been asked and may still answer.

        The tasks take no CPU: nodes that are busy with other jobs answer too.
        """
        new = {node_id: node for node_id, node in nodes.items() if node_id not in self._asked()}
        if not new:
            return
        try:
            self._begin_inquiry(new)
        except InputError as error:  # the driver can't write to its own folders
            raise NoPlacement(str(error)) from error
        except OSError as error:  # nor look at them
            raise NoPlacement(str(as_input_error(error, next_time="tries again"))) from error

    def _begin_inquiry(self, new: Mapping[str, Node]) -> None:
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(written_probe(self._requirements.folder))
            if self._trial is None and self._requirements.may_be_bfloat16 and not all(n.num_gpus for n in new.values()):
                from cluster.worker.precision import (
                    try_processor,  # here: it loads torch, which tasks on nodes do without
                )

                self._trial = try_processor()
            if self._is_local:
                ((node_id, node),) = new.items()
                node = dataclasses.replace(node, name="this machine")
                driver = _inspect(node, self._requirements, probe, self._trial)
                self._warn(self._take(node_id, driver, judge(driver, driver, self._requirements)))
                return
            driver = _inspect(Node(f"the driver's machine ({this_host()})"), self._requirements, probe, None)
            self._driver_versions = driver.versions
            self._of_driver = list(judge_disk(driver, self._requirements))
            self._warn(_judge_stop())
            tasks: dict[ray.ObjectRef[NodeReport], tuple[str, Node]] = {}
            for node_id, node in new.items():
                there = NodeAffinitySchedulingStrategy(node_id, soft=False)
                task: Any = ray.remote(_inspect).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
                tasks[task.remote(node, self._requirements, probe, self._trial)] = node_id, node
            ends = time.monotonic() + self._answer_seconds
            self._inquiries.append(_Inquiry(driver, tasks, ends, stack.pop_all()))

    def _collect(self, deadline: float) -> None:
        """Take the answers that come until a moment, or all; a node whose answer is late is left out until it comes."""
        for inquiry in self._inquiries:
            timeout = max(0.0, min(deadline, inquiry.ends) - time.monotonic())
            answered, _ = ray.wait(list(inquiry.tasks), num_returns=len(inquiry.tasks), timeout=timeout)
            warnings: list[Finding] = []
            for reference in answered:
                warnings += self._take(*self._judged(inquiry, reference))
            self._warn(warnings)
            if time.monotonic() >= inquiry.ends:
                for node_id, node in inquiry.tasks.values():
                    cause = f"does not answer within {self._answer_seconds:g} s"
                    next_step = "look at it with `ray status`, and stop its Ray or start it anew"
                    self._take(node_id, None, [Finding("error", node.name, cause, next_step)])
            if not inquiry.tasks:
                inquiry.probe.close()
        self._inquiries = [inquiry for inquiry in self._inquiries if inquiry.tasks]

    def _judged(
        self, inquiry: _Inquiry, reference: "ray.ObjectRef[NodeReport]"
    ) -> tuple[str, NodeReport | None, list[Finding]]:
        node_id, node = inquiry.tasks.pop(reference)
        try:
            report = ray.get(reference)
            return node_id, report, judge(report, inquiry.driver, self._requirements)
        except RayError as error:
            lines = str(error).strip().splitlines()
            cause = f"can't run this project's code ({lines[-1].strip()})"
            next_step = "submit with `--working-dir .`, and start its Ray from this project's environment"
            return node_id, None, [Finding("error", node.name, cause, next_step)]

    def _take(self, node_id: str, report: NodeReport | None, findings: list[Finding]) -> list[Finding]:
        """Note whether a node is fit; if it is, return what may go wrong on it all the same."""
        if report is not None and report.emulation is not None:
            self._emulations[node_id] = report.emulation
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors:
            self._left_out[node_id] = _LeftOut(errors, time.monotonic() + _AGAIN_SECONDS)
            return []
        self._fit.add(node_id)
        self._left_out.pop(node_id, None)
        return [finding for finding in findings if finding.severity == "warning"]

    def _warn(self, findings: list[Finding]) -> None:
        for line in messages(self._unsaid(findings), "warning"):
            sys.stderr.write(f"warning: {line}\n")

    def _unsaid(self, findings: list[Finding]) -> list[Finding]:
        new = [finding for finding in findings if finding not in self._said]
        self._said.update(new)
        return new


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


def _holders(nodes: Mapping[str, Mapping[str, Any]], placement: Placement) -> Iterator[tuple[str, Node]]:
    """Yield id and description of every node that may get a worker."""
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


def _inspect(node: Node, requirements: Requirements, probe: Probe, trial: Trial | None) -> NodeReport:
    """Look at a node: inside a Ray task, or at the driver's own machine."""
    report = inspect_node(node, requirements, probe, temporary_folder())
    if not requirements.may_be_bfloat16 or not node.num_workers:
        return report
    return dataclasses.replace(report, emulation=node_emulation(node.name, node.num_gpus, trial))
