"""Launch workers on Ray Train, to train or evaluate: on the cluster of a submitted job, or on a local Ray of its own.

Ray brings placement and process groups. It carries no images, no metrics and no checkpoints: the run folder, which all
workers see, holds them. Nor does it carry the workers' output: what a person needs to know is in the run's log, and
Ray's own actors talk too much; all of it is in Ray's log folder. Who launches again what was lost is
`cluster/supervisor.py`.
"""

import atexit
import contextlib
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.ray_executor import ray_session  # first: it sets variables that ray reads as it is imported

# isort: split
import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from cluster.allocator import ALLOCATOR_ENVIRONMENT
from cluster.placement import Placement
from cluster.stopping import StopRequest
from cluster.supervisor import WorkersLost
from cluster.world import World, is_lost_peer, process_group_backend
from pipeline.command import InputError, Terminated

_CONNECT_SECONDS = 2.0
_AGREE_SECONDS = 30.0  # that Ray gets to notice that a node is gone; by its defaults it takes about 20
_PARENT_POLL_SECONDS = 0.5
_NO_RETRIES: dict[str, Any] = {"controller_failure_limit": 0, "max_preemption_failures": 0}  # of the v2 API


@contextlib.contextmanager
def training_session() -> Iterator[bool]:
    """Connect to the cluster that submitted this process (RAY_ADDRESS), else start a local Ray; leave it at the end.

    Yields:
        True where the Ray is an embedded local one.
    """
    is_local = "RAY_ADDRESS" not in os.environ
    with ray_session("local" if is_local else "auto"):
        try:
            yield is_local
        except (KeyboardInterrupt, Terminated):
            sys.stderr.write("stopping the workers\n")
            raise


def alive_nodes() -> list[dict[str, float]]:
    """Return the resources of each node of the cluster that answers.

    Where one does not and Ray still counts on it, Ray gets the time to notice: else it would place workers there.
    """
    deadline = time.monotonic() + _AGREE_SECONDS
    while True:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answering = [node for node in nodes if _answers(node)]
        if len(answering) == len(nodes) or time.monotonic() > deadline:
            return [node["Resources"] for node in answering]
        time.sleep(_PARENT_POLL_SECONDS)


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


class RayCluster:
    """The cluster of this session; see `cluster.supervisor.Cluster`.

    Args:
        work: What a worker does, given its place; it is pickled, with what it holds.
        name: For Ray's logs.
        stop_request: By which the workers are asked to stop.
        check: Raises InputError where nodes that may get a worker are not fit for the run.
    """

    def __init__(
        self,
        work: Callable[[World], None],
        name: str,
        stop_request: StopRequest,
        check: Callable[[Placement], None],
    ) -> None:
        self._work, self._name, self._stop_request, self._check = work, name, stop_request, check
        self._checked: set[str] = set()

    def nodes(self) -> list[dict[str, float]]:
        """Return the resources of each node that lives."""
        return alive_nodes()

    def check(self, placement: Placement) -> None:
        """Check the nodes, unless all of them were checked before."""
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if not nodes <= self._checked:
            self._check(placement)
            self._checked |= nodes

    def start(self, placement: Placement) -> "RayLaunch":
        """Launch the workers."""
        return RayLaunch(self._work, placement, self._name, self._stop_request)


class RayLaunch:
    """A worker group of Ray Train, under way."""

    def __init__(
        self, work: Callable[[World], None], placement: Placement, name: str, stop_request: StopRequest | None
    ) -> None:
        """Start the workers; see `RayCluster`."""
        self._failure: BaseException | None = None
        # Not the thread's end: Python 3.11 takes a thread whose join a signal interrupts for ended.
        self._has_ended = threading.Event()
        threading.Thread(target=self._fit, args=(work, placement, name, stop_request), daemon=True).start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the workers' end, at most so long; return whether it has come.

        Raises:
            InputError: A worker refused its input.
            WorkersLost: A worker was lost.
        """
        if not self._has_ended.wait(seconds):
            return False
        if self._failure is not None:
            raise _explained(self._failure)
        return True

    def _fit(
        self, work: Callable[[World], None], placement: Placement, name: str, stop_request: StopRequest | None
    ) -> None:
        """Run the trainer; in the main thread Ray would take Ctrl-C for itself."""

        def worker() -> None:
            _end_with_parent()
            context = ray.train.get_context()
            rank, device = context.get_world_rank(), torch.device(get_device())
            if rank == 0:
                _end_synchronization_actor()
            wants_to_stop = {} if stop_request is None or rank else {"wants_to_stop": stop_request.is_made}
            work(World(rank, context.get_world_size(), device, **wants_to_stop))

        try:
            _remove_placement_groups()
            with tempfile.TemporaryDirectory(prefix="alexnet-ray-") as storage:
                _trainer(worker, placement, name, storage).fit()
        except BaseException as error:
            self._failure = error
        finally:
            self._has_ended.set()


def launch(work: Callable[[World], None], placement: Placement, name: str) -> None:
    """Run `work` on all workers and wait for its end; see `RayCluster`.

    Raises:
        InputError: A worker refused its input, or was lost.
    """
    try:
        RayLaunch(work, placement, name, None).wait()
    except WorkersLost as lost:
        raise InputError(f"{lost}; the same command tries again") from lost


class _LeanTrainer(TorchTrainer):
    """Without three actors of Ray Train that serve nothing here; see docs/decisions.

    They would hand out shards of Ray Data's datasets, remove what a dead controller left (which needs a dashboard; see
    `_remove_placement_groups`), and ask an autoscaler for room that the supervisor has already found. Each wakes up a
    hundred times a second, on cores that the workers may have no others than. A Ray whose methods have other names
    starts them all the same. And its controller ends: of Ray 2.60's, one of some twenty hangs as it exits.
    """

    def _create_default_callbacks(self) -> list[Any]:
        superfluous = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # of the v2 API
        return [callback for callback in callbacks if type(callback).__name__ not in superfluous]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        def after_start(_: object) -> None:
            atexit.register(os._exit, 0)  # before C++ destroys what waits for each other

        if policy := arguments.get("scaling_policy"):  # a part of the controller
            policy.after_controller_start, policy._maybe_send_resource_request = after_start, lambda: None
        return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]


def _end_synchronization_actor() -> None:
    """End, from a worker, the actor through which workers agree on what they report to Ray Train: nothing here."""
    with contextlib.suppress(ImportError, AttributeError):  # another Ray than 2.60 may have other names inside
        from ray.train.v2._internal.execution.context import get_train_context

        actor: Any = get_train_context().execution_context.synchronization_actor
        ray.kill(actor)


def _remove_placement_groups() -> None:
    """Remove this driver's placement groups, of earlier launches: a killed controller's would keep CPUs and GPUs."""
    job_id = ray.get_runtime_context().get_job_id()
    for group_id, group in placement_group_table().items():
        if group_id.endswith(job_id) and group["state"] != "REMOVED":  # its last bytes are its job's
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group_id)))


def _trainer(worker: Callable[[], None], placement: Placement, name: str, storage: str) -> TorchTrainer:
    environment = ALLOCATOR_ENVIRONMENT | {"OMP_NUM_THREADS": str(placement.num_threads)}
    resources = {"CPU": placement.cpus_per_worker, "GPU": float(placement.gpus_per_worker)}
    return _LeanTrainer(
        worker,
        torch_config=TorchConfig(backend=process_group_backend("cuda" if placement.gpus_per_worker else "cpu")),
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
            placement_strategy=placement.strategy.upper(),
        ),
        # Ray's own storage holds nothing that we need: a run is resumed from its run folder.
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=0, **_NO_RETRIES),
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]  # of the v2 API
        ),
    )


def _end_with_parent() -> None:
    """End this worker as soon as its raylet is gone: Ray leaves it running for a while, and others take its place."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _explained(error: BaseException) -> BaseException:
    """Return the InputError that a worker raised, or one that says that a worker was lost; else the error itself."""
    failures = list(error.worker_failures.values()) if isinstance(error, ray.train.WorkerGroupError) else [error]
    if isinstance(error, ray.train.ControllerError):
        failures = [error.controller_failure]
    for failure in failures:
        if isinstance(failure, InputError):
            return failure
        if isinstance(failure, OSError):
            return InputError(
                f"a worker met: {failure}; mend it, and the same command goes on from the last checkpoint"
            )
    if not all(_is_of_ray(failure) or is_lost_peer(failure) for failure in failures):
        return error
    # Ray's own words tell more than those of the workers that were left.
    cause = min(failures, key=lambda failure: not _is_of_ray(failure))
    if type(cause).__name__ == "WorkerGroupStartupTimeoutError":
        return WorkersLost("the cluster gave no room to the workers in time; are its nodes busy with other jobs?")
    cause = getattr(cause, "health_check_failure", cause)  # what Ray met when it asked for the worker
    first_line = re.sub(r"^\[[^]]*\] *", "", str(cause).strip().partition("\n")[0])  # without gloo's source file
    return WorkersLost(f"a worker was lost ({first_line.partition('. ')[0]})")


def _is_of_ray(failure: BaseException) -> bool:
    """Return whether Ray made the failure: no code of ours raised it."""
    return type(failure).__module__.partition(".")[0] == "ray"
