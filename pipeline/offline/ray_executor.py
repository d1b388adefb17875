"""Ray as an executor of the offline stage: `ordered_map` over tasks of a running cluster.

Tasks carry lists of samples, never pictures: each reads the source and writes its shard itself, so source and output
must be visible on all nodes under the same paths. Ray runs the tasks of a lost node again on other nodes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from pipeline.command import InputError
from pipeline.system.ray_session import ray_session

Item = TypeVar("Item")
Result = TypeVar("Result")
_TASKS_PER_CPU = 2  # in flight by default: one runs, one waits
_FINISH_SECONDS = 5.0  # for running tasks to finish when one has failed; Ray ends them when this process leaves


@contextmanager
def ray_map(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None
) -> Iterator[Iterator[Result]]:
    """Give `map(function, items)`, computed by one-CPU tasks of a running Ray cluster; leaving the block ends them.

    Args:
        function: Function to apply to each item; picklable by name, since the nodes have this project.
        items: Arguments of the function; picklable.
        num_workers: Number of tasks in flight; None: enough to keep all CPUs of the cluster busy.

    Raises:
        InputError: No cluster answers, or the cluster lost a task for good.
        Exception: The function raised it.
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
    """Runs inside a Ray task: applies the function to an item."""
    return function(item)


def _get(reference: "ray.ObjectRef[Result]") -> Result:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # what the function itself raised
    except ray.exceptions.RayError as error:
        cause = str(error).strip().partition("\n")[0]
        raise InputError(f"Ray lost a task ({cause}); the same command goes on where it stopped") from error
