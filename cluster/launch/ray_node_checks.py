"""Which nodes of a Ray cluster are fit for a run, found out before a node gets a worker."""

import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from ray.exceptions import RayError

from cluster.launch.node_checks import Node, Requirements
from cluster.launch.node_findings import Finding, messages
from cluster.launch.placement import NoPlacement, Place, Placement
from cluster.launch.ray_node_inquiry import Answer, NodeInquiries
from cluster.launch.ray_nodes import answering_nodes, nodes_with_room, ray_nodes
from cluster.worker.emulation import Emulation
from pipeline.command import InputError
from pipeline.system.os_errors import as_user_error

_ANSWER_SECONDS = 60.0
_AGAIN_SECONDS = 60.0  # until a node that was not fit, or did not answer, is asked once more: it may have been mended


@dataclasses.dataclass(frozen=True)
class _LeftOut:
    """A node that is not fit.

    Attributes:
        findings: Why.
        until: Time by `time.monotonic` before which it is not asked again.
    """

    findings: list[Finding]
    until: float


class FitNodes:
    """Finds the nodes that are fit for a run, within a session of Ray; leaving the block ends what is under way.

    A node is asked when it may get a worker, and never again once it was found fit. One that was not is left out, which
    is said once for each cause, and asked again after a minute. Where a run computes in bfloat16, nodes that would
    emulate it are left out if the others suffice.

    Args:
        requirements: Needs of the run.
        is_local: The Ray is an embedded local one, so that this process sees what workers will see.
        answer_seconds: Time for a node to answer.
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
        self._gpus_per_worker: int | None = None  # of the first placement, and so of all
        self._shared = "folder and code" if requirements.dataset_path is None else "dataset, folder and code"
        self._is_local, self._inquiries = is_local, NodeInquiries(requirements, is_local, answer_seconds)
        self._fit: set[str] = set()
        self._left_out: dict[str, _LeftOut] = {}
        self._said: set[Finding] = set()

    def __enter__(self) -> "FitNodes":
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the probes that nodes may still look for."""
        self._inquiries.close()

    def place(self, place: Place, wait_seconds: float | None = None, needs_all: bool = False) -> Placement:
        """Return a placement on nodes that are fit.

        Args:
            place: Says how to place workers on nodes.
            wait_seconds: Time for nodes to answer before workers are placed without them; None: all that they may take.
            needs_all: No node that may get a worker may be left out.

        Raises:
            NoPlacement: The fit nodes do not suffice for now: a line for each cause that a node is left out, and what
                there is.
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
            nodes = answering_nodes(ray_nodes())
            usable = {node_id: node for node_id, node in nodes.items() if self._may_be_used(node_id, node)}
            placement = self._tried(place, usable, nodes)
            holders = dict(nodes_with_room(usable, placement))
            unknown = {node_id: node for node_id, node in holders.items() if node_id not in self._fit}
            self._ask(unknown)
            if not unknown or time.monotonic() >= deadline:
                break
            self._collect(deadline)
        if unknown:
            usable = {node_id: node for node_id, node in usable.items() if node_id in self._fit}
            placement = self._tried(place, usable, nodes)
            holders = dict(nodes_with_room(usable, placement))
        if self._prefers_native and not self._emulations.keys().isdisjoint(holders):
            asked = {node_id: usable[node_id] for node_id in holders}
            placement, holders = self._without_emulation(place, asked, placement, holders)
        of_driver = self._inquiries.driver_findings
        if of_driver or (needs_all and self._findings(nodes)):
            more = [] if of_driver else [f"to run without what is not fit, use --workers {placement.num_workers}"]
            raise NoPlacement("\n".join([*self._causes(nodes), *more]))
        self._say(nodes, len(self._fit - known), time.monotonic() - began)
        self._inquiries.expect_a_filled_disk()
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
        return without, dict(nodes_with_room(native, without))

    def _is_left_out(self, node_id: str) -> bool:
        """Return whether a node is not to be used or asked for now; one that still owes an answer is not."""
        if node_id not in self._left_out:
            return False
        return time.monotonic() < self._left_out[node_id].until or node_id in self._inquiries.open_node_ids()

    def _may_be_used(self, node_id: str, node: Mapping[str, Any]) -> bool:
        """Return whether workers may be placed on a node: a run on CPUs does not change to GPUs that join it."""
        joins_with_gpus = self._gpus_per_worker == 0 and node["Resources"].get("GPU", 0) > 0
        return not joins_with_gpus and not self._is_left_out(node_id)

    def _findings(self, nodes: Mapping[str, Any]) -> list[Finding]:
        """Return why nodes of those that are there are left out."""
        left_out = (self._left_out[node_id] for node_id in nodes if self._is_left_out(node_id))
        return [finding for each in left_out for finding in each.findings]

    def _causes(self, nodes: Mapping[str, Any]) -> list[str]:
        return messages([*self._inquiries.driver_findings, *self._findings(nodes)], "error")

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
            versions = self._inquiries.driver_versions
            sys.stdout.write(
                f"{num_new} node{'s' * (num_new > 1)} checked in {seconds:.1f} s: the same {self._shared}, torch "
                f"{versions['torch']}, DALI {versions['DALI']}\n"
            )
            sys.stdout.flush()

    def _ask(self, nodes: Mapping[str, Node]) -> None:
        try:
            answers = self._inquiries.ask(nodes)
        except InputError as error:  # the driver can't write to its own folders
            raise NoPlacement(str(error)) from error
        except OSError as error:  # nor look at them
            raise NoPlacement(str(as_user_error(error, next_time="tries again"))) from error
        self._warn(self._inquiries.job_findings)
        self._take(answers)

    def _collect(self, deadline: float) -> None:
        """Take the answers that come until a moment, or all; a node whose answer is late is left out until it comes."""
        for answers in self._inquiries.collect(deadline):
            self._take(answers)

    def _take(self, answers: Sequence[Answer]) -> None:
        """Note which nodes are fit, and say what may go wrong on them all the same."""
        warnings: list[Finding] = []
        for answer in answers:
            if answer.report is not None and answer.report.emulation is not None:
                self._emulations[answer.node_id] = answer.report.emulation
            errors = [finding for finding in answer.findings if finding.severity == "error"]
            if errors:
                self._left_out[answer.node_id] = _LeftOut(errors, time.monotonic() + _AGAIN_SECONDS)
                continue
            self._fit.add(answer.node_id)
            self._left_out.pop(answer.node_id, None)
            warnings += [finding for finding in answer.findings if finding.severity == "warning"]
        self._warn(warnings)

    def _warn(self, findings: list[Finding]) -> None:
        for line in messages(self._unsaid(findings), "warning"):
            sys.stderr.write(f"warning: {line}\n")

    def _unsaid(self, findings: list[Finding]) -> list[Finding]:
        new = [finding for finding in findings if finding not in self._said]
        self._said.update(new)
        return new
