"""Keeps a run going on a cluster that may lose workers and nodes at any time, and gain some.

Workers that were lost are launched again, as many as the cluster then holds; where it comes to hold more of them, the
workers stop at a checkpoint and more are launched. Only lost processes are retried, and what the operating system may
do better the next time: an exception of ours ends the run at once. What was lost, and when, stands in the run's
`launches.jsonl` (`cluster/run/run_log.py`).

Knows nothing of Ray. Ray Train's own retries and elasticity are not used: see docs/decisions.
"""

import sys
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from cluster.launch.placement import NoPlacement, Place, Placement
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Finished, Launched, Line, Lost, Resizing, RunLog, Stopping
from pipeline.command import Terminated, UserError
from pipeline.system.os_errors import as_user_error, described, way_out

MAX_RESTARTS = 3  # in a row without a new checkpoint
_POLL_SECONDS = 1.0
_SETTLE_SECONDS = 5.0  # that a larger cluster must last before the run grows
_PATIENCE_SECONDS = 600.0  # that a run waits for nodes to come back
_RESULT_SECONDS = 60.0
_ANSWER_SECONDS = 10.0  # that a new node gets to answer before lost workers are launched again without it
_INSIST_SECONDS = 300.0  # that the run folder may be out of reach

Result = TypeVar("Result")


class WorkersLost(UserError):
    """Processes of a launch are gone, and nothing else is wrong."""


class Launch(Protocol):
    """Workers that are running."""

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for their end, at most so long; return whether it has come.

        Raises:
            WorkersLost: Some were lost.
            Exception: What a worker raised.
        """


class Cluster(Protocol):
    """A cluster that workers are launched on."""

    def place(self, place: Place, wait_seconds: float) -> Placement:
        """Return a placement on nodes that are fit for the run; others that live are left out.

        Args:
            place: Says how to place workers on nodes.
            wait_seconds: Time for nodes that were not looked at before to answer; later ones are left out for now.

        Raises:
            NoPlacement: The fit nodes do not suffice for now.
            InputError: No nodes would suffice.
        """

    def start(self, placement: Placement) -> Launch:
        """Launch the workers, which go on with the run from its latest checkpoint."""


def supervise(run: RunFolder, log: RunLog, cluster: Cluster, place: Place, most_workers: int) -> None:
    """Train a run to its end.

    Args:
        run: Run that is not finished.
        log: Its `launches.jsonl`.
        cluster: Cluster to launch on.
        place: Says how to place workers on nodes.
        most_workers: Largest number that it places; a launch of that size is not watched for more.

    Raises:
        UserError: A worker refused its input, the cluster can't hold the workers, or some were lost again and again.
        KeyboardInterrupt, Terminated: The run was stopped before its end, if time allowed at a checkpoint.
    """
    num_failures, placement = 0, cluster.place(place, _ANSWER_SECONDS)
    while not _is_finished(run):
        before = _latest_step(run)
        try:
            _launch(run, cluster, place, placement, most_workers, log)
            num_failures = 0
        except WorkersLost as lost:
            step = _latest_step(run)
            _note(log, Lost(cause=str(lost), step=step))
            num_failures = 1 if step > before else num_failures + 1
            if num_failures > MAX_RESTARTS:
                raise UserError(
                    f"{lost}; {num_failures} launches in a row ended so before a new checkpoint: see Ray's logs, "
                    "or write checkpoints more often (--checkpoint-interval, --checkpoint-seconds)"
                ) from lost
            _say(f"{lost}; going on from step {step}")
        except (KeyboardInterrupt, Terminated):
            if not _is_finished(run):
                raise
        if not _is_finished(run):
            placement = _wait_for_place(cluster, place)
    _note(log, Finished())


def _launch(
    run: RunFolder, cluster: Cluster, place: Place, placement: Placement, most_workers: int, log: RunLog
) -> None:
    """Launch workers and wait until they end: with the run, or at a checkpoint because there may be more of them."""
    _insist(run.stop_request.clear)
    metrics_size = _size(run)

    def has_begun() -> bool:  # before, the workers can't stop at a checkpoint, and there is nothing to save
        return _size(run) > metrics_size

    _note(log, Launched(num_workers=placement.num_workers))
    launch = cluster.start(placement)
    try:
        _watch(run, launch, _Growth(cluster, place, placement.num_workers, most_workers), has_begun, log)
    except (KeyboardInterrupt, Terminated):
        _note(log, Stopping())
        if has_begun():
            _stop_at_checkpoint(run, launch)
        raise
    if not run.stop_request.is_made():
        _wait_for_result(run)


def _watch(run: RunFolder, launch: Launch, growth: "_Growth", has_begun: Callable[[], bool], log: RunLog) -> None:
    """Wait until the workers end; ask them to stop at a checkpoint where the cluster comes to hold more of them."""
    while not launch.wait(_POLL_SECONDS):
        if run.stop_request.is_made():
            continue
        num_workers = growth.num_workers_held()
        if num_workers is not None and has_begun():
            _note(log, Resizing(num_workers=num_workers))
            _say(f"the cluster holds {num_workers} workers now: stopping at a checkpoint to take them in")
            _insist(run.stop_request.make)


def _stop_at_checkpoint(run: RunFolder, launch: Launch) -> None:
    _say("stopping the workers at a checkpoint; once more ends them at once")
    _insist(run.stop_request.make)
    try:
        launch.wait()
    except WorkersLost as lost:
        _say(f"{lost}; what came after the latest checkpoint is lost")


class _Growth:
    """Watches whether a cluster comes to hold more workers than a launch has, on nodes that are fit for the run.

    Args:
        cluster: Cluster of the launch.
        place: Says how many workers it holds.
        num_workers: Number of workers of the launch.
        most_workers: Largest number of workers; a launch of that size needs no watch.
    """

    def __init__(self, cluster: Cluster, place: Place, num_workers: int, most_workers: int) -> None:
        self._cluster, self._place, self._num_workers, self._most = cluster, place, num_workers, most_workers
        self._since: float | None = None  # when it was first seen to hold more

    def num_workers_held(self) -> int | None:
        """Return how many workers the cluster holds, where they have been more than the launch's for long enough."""
        if self._num_workers >= self._most:
            return None
        try:
            num_workers = self._cluster.place(self._place, wait_seconds=0.0).num_workers
        except NoPlacement:
            num_workers = 0
        if num_workers <= self._num_workers:
            self._since = None
            return None
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return num_workers if now - self._since >= _SETTLE_SECONDS else None


def _wait_for_place(cluster: Cluster, place: Place) -> Placement:
    """Return a placement as soon as the cluster holds enough workers."""
    deadline, said = time.monotonic() + _PATIENCE_SECONDS, False
    while True:
        try:
            return cluster.place(place, _ANSWER_SECONDS)
        except NoPlacement as error:
            if time.monotonic() > deadline:
                raise
            if not said:
                _say(f"{error}\nwaiting up to {_PATIENCE_SECONDS:.0f} s for nodes")
                said = True
        time.sleep(_POLL_SECONDS)


def _wait_for_result(run: RunFolder) -> None:
    """Wait for the result of workers that have ended by themselves; a network file system may show it late."""
    deadline = time.monotonic() + _RESULT_SECONDS
    while not _is_finished(run) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _is_finished(run: RunFolder) -> bool:
    return _insist(lambda: run.result) is not None


def _latest_step(run: RunFolder) -> int:
    return _insist(run.checkpoints.latest_step)


def _size(run: RunFolder) -> int:
    """Return the size of the run's log, which grows as soon as workers have begun."""
    return _insist(lambda: run.metrics_path.stat().st_size if run.metrics_path.exists() else 0)


def _note(log: RunLog, line: Line) -> None:
    """Write a line to the run's log of launches, which the run can do without for a while."""
    try:
        log.write(line)
    except OSError as error:
        if way_out(error):
            raise as_user_error(error) from error
        _say(f"launches.jsonl lacks `{line.kind}`: {described(error)}")


def _insist(call: Callable[[], Result]) -> Result:
    """Call until it succeeds: a shared file system may be out of reach for a while, and the workers live on meanwhile.

    Raises:
        UserError: It met an error of the operating system that lasts.
    """
    deadline, said = time.monotonic() + _INSIST_SECONDS, False
    while True:
        try:
            return call()
        except OSError as error:
            if way_out(error) or time.monotonic() > deadline:
                raise as_user_error(error) from error
            if not said:
                _say(f"{described(error)}; trying again for up to {_INSIST_SECONDS:.0f} s")
                said = True
        time.sleep(_POLL_SECONDS)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
