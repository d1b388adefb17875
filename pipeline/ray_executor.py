"""Ray as an executor of the offline stage: `ordered_map` over tasks of a running cluster. Also: how Ray is entered.

Tasks carry lists of samples, never pictures: each reads its source and writes its shard by itself, so that source and
output must be visible on all nodes under the same path. Ray runs the tasks of a lost node again elsewhere.
"""

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

# Before ray is imported, which reads them once. Without a stated mode a local Ray writes a token file that locks later
# clusters of the same user; the print patch doubles every line; nothing is reported to anyone. A local Ray starts no
# workers that nobody has asked for, Ray Train none that waits for a notice of preemption: each costs a launch a second.
# It collects no metrics, which nobody could read, and its workers have the priority of any other process.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_enable_metrics_collection", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray

from pipeline.command import InputError, raise_terminated

Item = TypeVar("Item")
Result = TypeVar("Result")
# A local Ray does not look for new log files ten times a second, as nobody reads them from it, nor keep a history of
# tasks and of its node's load, which only a dashboard would show: on two cores this costs the workers time.
_LOCAL_DEFAULTS = {
    "LOG_NAME_UPDATE_INTERVAL_S": "60",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "RAY_task_events_report_interval_ms": "0",
}
_TASKS_PER_CPU = 2  # in flight where no number is asked for: one runs, one waits
_FINISH_SECONDS = 5.0  # that tasks under way get when one has failed; Ray ends them when this process leaves
_CONNECT_SECONDS = 10.0


@contextmanager
def ray_session(address: str) -> Iterator[None]:
    """Enter Ray, and leave it at the end.

    Args:
        address: `local` starts a Ray of this process's own, without a dashboard; `auto` joins the running cluster: that
            of a submitted job (RAY_ADDRESS), else this machine's.

    Raises:
        InputError: No cluster answers.
    """
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    cluster = os.environ.get("RAY_ADDRESS", "") if address == "auto" else ""
    if address == "local":
        os.environ.update(_LOCAL_DEFAULTS | os.environ)
    try:
        host, _, port = cluster.removeprefix("ray://").rpartition(":")
        if host:  # a dead address is told here at once; Ray would try for minutes
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except (OSError, ValueError) as error:
        at = f"at RAY_ADDRESS={cluster}; start it, or unset the variable" if cluster else "here; run `ray start --head`"
        raise InputError(f"no Ray cluster answers {at}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, raise_terminated)  # Ray has put its own in place, which aborts the process
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def ray_map(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None
) -> Iterator[Iterator[Result]]:
    """Give `map(function, items)`, computed by a running Ray cluster's tasks of one CPU; leaving the block ends them.

    Args:
        function: Picklable by name: the nodes have this project.
        items: Picklable.
        num_workers: Tasks in flight at once; None: what keeps all CPUs of the cluster busy.

    Raises:
        InputError: No cluster answers, or it lost a task for good.
        Exception: What the function raised.
    """
    with ray_session("auto"):
        limit = num_workers or _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        task: Any = ray.remote(num_cpus=1)(_call)
        under_way: deque[ray.ObjectRef[Any]] = deque()
        waiting = iter(items)

        def fill() -> None:
            while len(under_way) < limit and (item := next(waiting, None)) is not None:
                under_way.append(task.remote(function, item))

        def results() -> Iterator[Result]:
            fill()
            while under_way:
                result = _get(under_way[0])
                under_way.popleft()
                fill()
                yield result

        try:
            yield results()
        finally:
            if under_way:  # The block raised. Cancelling a task that is about to end can crash this process (Ray 2.60).
                ray.wait(list(under_way), num_returns=len(under_way), timeout=_FINISH_SECONDS)


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    """Be a task."""
    return function(item)


def _get(reference: "ray.ObjectRef[Result]") -> Result:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # the function's own
    except ray.exceptions.RayError as error:
        cause = str(error).strip().partition("\n")[0]
        raise InputError(f"Ray lost a task ({cause}); the same command goes on where it stopped") from error
