"""What ended workers on Ray: an error that ends the run too, or a loss that the same workers would not meet again."""

from typing import TypeGuard

import ray.exceptions
import ray.train

from cluster.launch.supervisor import WorkersLost
from cluster.worker.torch_quirks import is_lost_peer, is_wrong_network, last_line, unreachable_workers
from pipeline.command import UserError
from pipeline.system.os_errors import as_user_error, described, way_out
from pipeline.system.ray_quirks import health_check_cause, is_startup_timeout


def explained(
    error: BaseException, fatal_signal: str | None = None, next_time: str = "goes on from the latest checkpoint"
) -> BaseException:
    """Return what a failed launch means.

    Args:
        error: Error raised by Ray Train, or met by the driver as it launched.
        fatal_signal: Signal that killed a worker, where it is known; see `cluster.launch.last_words`.
        next_time: Effect of running the same command again.

    Returns:
        A UserError where a worker refused its input or met an error that lasts; WorkersLost where processes were lost
        or an error may pass; the error itself where the code is wrong.
    """
    if _is_of_system(error):  # met by the driver: those of workers come in an error of Ray Train
        return as_user_error(error, next_time=next_time) if way_out(error) else WorkersLost(described(error))
    failures = list(error.worker_failures.values()) if isinstance(error, ray.train.WorkerGroupError) else [error]
    if isinstance(error, ray.train.ControllerError):
        failures = [error.controller_failure]
    for failure in failures:
        if isinstance(failure, UserError):
            return failure
        if _is_of_system(failure) and way_out(failure):
            return as_user_error(failure, "a worker met: ", next_time)
        if is_wrong_network(failure):
            return UserError(unreachable_workers(failure))
    if not all(_is_of_ray(failure) or _is_of_system(failure) or is_lost_peer(failure) for failure in failures):
        return error
    if fatal_signal is not None:
        return WorkersLost(f"a worker was lost ({fatal_signal})")
    # An error that a worker met tells more than Ray's words, these more than what the workers met that were left.
    cause = min(failures, key=lambda failure: (not _is_of_system(failure), not _is_of_ray(failure)))
    if _is_of_system(cause):
        return WorkersLost(f"a worker was lost ({described(cause)})")
    if is_startup_timeout(cause):
        return WorkersLost("the cluster gave no room to the workers in time; are its nodes busy with other jobs?")
    cause = health_check_cause(cause)
    if isinstance(cause, ray.exceptions.RayTaskError):  # a traceback
        return WorkersLost(f"a worker was lost ({last_line(str(cause))})")
    first_line = last_line(str(cause).strip().partition("\n")[0])
    return WorkersLost(f"a worker was lost ({first_line.partition('. ')[0]})")


def _is_of_ray(failure: BaseException) -> bool:
    """Return whether Ray made the failure: no code of ours raised it."""
    return type(failure).__module__.partition(".")[0] == "ray"


def _is_of_system(failure: BaseException) -> TypeGuard[OSError]:
    """Return whether the operating system made it; some errors of Ray's own are of a subclass."""
    return isinstance(failure, OSError) and not _is_of_ray(failure)
