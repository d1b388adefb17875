"""Keeps a run going on a cluster that may lose workers and nodes at any time, and gain some.

Workers that were lost are launched again, as many as the cluster then holds; where it comes to hold more of them, the
workers stop at a checkpoint and more are launched. Only lost processes are retried: an exception of ours ends the run
at once. What was lost, and when, stands in the run's `launches.jsonl`:

    {"kind": "launch", "num_workers": 2}
    {"kind": "lost", "cause": "..", "step": 500}      to go on from the checkpoint of step 500
    {"kind": "resize", "num_workers": 3}              asked to stop, to be launched again with so many
    {"kind": "stop"}                                  asked to stop by a signal
    {"kind": "finish"}

Knows nothing of Ray. Ray Train's own retries and elasticity are not used: see docs/decisions.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from cluster.json_log import JsonLog
from cluster.placement import Placement
from cluster.run_folder import RunFolder
from pipeline.command import InputError, Terminated

MAX_RESTARTS = 3  # in a row without a new checkpoint
_POLL_SECONDS = 1.0
_SETTLE_SECONDS = 5.0  # that a larger cluster must last before the run grows
_PATIENCE_SECONDS = 600.0  # that a run waits for nodes to come back
_RESULT_SECONDS = 60.0


class WorkersLost(InputError):
    """Processes of a launch are gone, and nothing else is wrong."""


class Launch(Protocol):
    """Workers that run."""

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for their end, at most so long; return whether it has come.

        Raises:
            WorkersLost: Some were lost.
            Exception: What a worker raised.
        """


Place = Callable[[Sequence[Mapping[str, float]]], Placement]


class Cluster(Protocol):
    """Where workers are launched."""

    def nodes(self) -> Sequence[Mapping[str, float]]:
        """Return the resources of each node that lives."""

    def check(self, placement: Placement) -> None:
        """Check that the nodes are fit for the run, those that were not checked before.

        Raises:
            InputError: One is not.
        """

    def start(self, placement: Placement) -> Launch:
        """Launch the workers, which go on with the run from its latest checkpoint."""


def supervise(run: RunFolder, log: JsonLog, cluster: Cluster, place: Place) -> None:
    """Train a run to its end.

    Args:
        run: Not finished.
        log: Its `launches.jsonl`.
        cluster: To launch on.
        place: Returns how to place workers on nodes, or raises InputError where they can't hold enough.

    Raises:
        InputError: A worker refused its input, the cluster can't hold the workers, or some were lost again and again.
        KeyboardInterrupt, Terminated: The run was stopped before its end, if time allowed at a checkpoint.
    """
    num_failures, placement = 0, _place(cluster, place)
    while run.result is None:
        before = run.checkpoints.latest_step()
        try:
            _launch(run, cluster, place, placement, log)
            num_failures = 0
        except WorkersLost as lost:
            step = run.checkpoints.latest_step()
            log.write("lost", cause=str(lost), step=step)
            num_failures = 1 if step > before else num_failures + 1
            if num_failures > MAX_RESTARTS:
                raise InputError(
                    f"{lost}; {num_failures} launches in a row ended so before a new checkpoint: see Ray's logs, "
                    "or write checkpoints more often (--checkpoint-interval)"
                ) from lost
            _say(f"{lost}; going on from step {step}")
        except (KeyboardInterrupt, Terminated):
            if run.result is None:
                raise
        if run.result is None:
            placement = _wait_for_place(cluster, place)
    log.write("finish")


def _launch(run: RunFolder, cluster: Cluster, place: Place, placement: Placement, log: JsonLog) -> None:
    """Launch workers and wait until they end: with the run, or at a checkpoint because there may be more of them."""
    run.stop_request.clear()
    metrics_size = _size(run)
    log.write("launch", num_workers=placement.num_workers)
    launch = cluster.start(placement)
    growth = _Growth(cluster, place, placement.num_workers)
    try:
        while not launch.wait(_POLL_SECONDS):
            if not run.stop_request.is_made() and growth.is_due(has_begun=_size(run) > metrics_size):
                log.write("resize", num_workers=growth.num_workers)
                _say(f"the cluster holds {growth.num_workers} workers now: stopping at a checkpoint to take them in")
                run.stop_request.make()
    except (KeyboardInterrupt, Terminated):
        log.write("stop")
        if _size(run) > metrics_size:  # else no worker has begun, and there is nothing to save
            _say("stopping the workers at a checkpoint; once more ends them at once")
            run.stop_request.make()
            try:
                launch.wait()
            except WorkersLost as lost:
                _say(f"{lost}; what came after the latest checkpoint is lost")
        raise
    if not run.stop_request.is_made():
        _wait_for_result(run)


class _Growth:
    """Watches whether a cluster comes to hold more workers than a launch has.

    Args:
        cluster: To watch.
        place: Says how many it holds.
        num_workers: Of the launch.
    """

    def __init__(self, cluster: Cluster, place: Place, num_workers: int) -> None:
        self._cluster, self._place, self.num_workers = cluster, place, num_workers
        self._since: float | None = None

    def is_due(self, has_begun: bool) -> bool:
        """Return whether more workers fit, for long enough, on nodes that are fit for the run.

        Args:
            has_begun: Whether the launch's workers have; before, they can't stop at a checkpoint.
        """
        try:
            placement = self._place(self._cluster.nodes())
        except InputError:  # it holds less than the least
            self._since = None
            return False
        if placement.num_workers <= self.num_workers:
            self._since = None
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since < _SETTLE_SECONDS or not has_begun:
            return False
        self.num_workers, self._since = placement.num_workers, None  # a number that was refused is not tried again
        try:
            self._cluster.check(placement)
        except InputError as error:
            _say(f"new nodes are not taken in: {error}")
            return False
        return True


def _place(cluster: Cluster, place: Place) -> Placement:
    """Return a placement on nodes that are fit for the run."""
    placement = place(cluster.nodes())
    cluster.check(placement)
    return placement


def _wait_for_place(cluster: Cluster, place: Place) -> Placement:
    """Return a placement as soon as the cluster holds enough workers."""
    deadline, said = time.monotonic() + _PATIENCE_SECONDS, False
    while True:
        try:
            return _place(cluster, place)
        except InputError as error:
            if time.monotonic() > deadline:
                raise
            if not said:
                _say(f"{error}; waiting up to {_PATIENCE_SECONDS:.0f} s for nodes")
                said = True
        time.sleep(_POLL_SECONDS)


def _wait_for_result(run: RunFolder) -> None:
    """Wait for the result of workers that have ended by themselves; a network file system may show it late."""
    deadline = time.monotonic() + _RESULT_SECONDS
    while run.result is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _size(run: RunFolder) -> int:
    """Return the size of the run's log, which grows as soon as workers have begun."""
    return run.metrics_path.stat().st_size if run.metrics_path.exists() else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
