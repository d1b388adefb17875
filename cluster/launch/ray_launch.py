"""Launch workers on Ray Train, to train or evaluate: on the cluster of a submitted job, or on a local Ray of its own.

Ray brings placement and process groups. It carries no images, no metrics and no checkpoints: the run folder, which all
workers see, holds them. Nor does it carry the workers' output: what a person needs to know is in the run's log, and
Ray's own actors talk too much; all of it is in Ray's log folder. Who launches again what was lost is
`cluster/launch/supervisor.py`.
"""

import contextlib
import functools
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cluster.launch.last_words import LastWords
from cluster.launch.placement import Place, Placement
from cluster.launch.ray_failures import explained
from cluster.launch.ray_node_checks import FitNodes
from cluster.launch.supervisor import WorkersLost
from cluster.run.launch_mark import LaunchMark
from cluster.run.stop_request import StopRequest
from cluster.worker.allocator import ALLOCATOR_ENVIRONMENT
from cluster.worker.world import World, process_group_backend
from pipeline.command import InputError, Terminated
from pipeline.system.ray_quirks import controller_callbacks, remove_placement_groups
from pipeline.system.ray_session import has_cluster, ray_session

_POLL_SECONDS = 0.5
_NODE_ID = "ray.io/node-id"  # a label that Ray gives to each node
_NO_RETRIES: dict[str, Any] = {"controller_failure_limit": 0, "max_preemption_failures": 0}  # of the v2 API


@contextlib.contextmanager
def training_session() -> Iterator[bool]:
    """Connect to the cluster that RAY_ADDRESS names, as in a submitted job, else start a local Ray; leave it at last.

    Yields:
        True where the Ray is an embedded local one.
    """
    is_local = not has_cluster()
    with ray_session("local" if is_local else "auto"):
        try:
            yield is_local
        except (KeyboardInterrupt, Terminated):
            sys.stderr.write("stopping the workers\n")
            raise


class RayCluster:
    """The cluster of this session; see `cluster.launch.supervisor.Cluster`.

    Args:
        work: Function that a worker runs, given its place; it is pickled, with what it holds.
        name: Name in Ray's logs.
        folder: Folder that all workers see and write to.
        fit_nodes: Nodes that workers are placed on.
        stop_request: Flag that asks the workers to stop.
    """

    def __init__(
        self,
        work: Callable[[World], None],
        name: str,
        folder: Path,
        fit_nodes: FitNodes,
        stop_request: StopRequest | None = None,
    ) -> None:
        self._work, self._name, self._fit_nodes, self._stop_request = work, name, fit_nodes, stop_request
        self._folder = folder

    def place(self, place: Place, wait_seconds: float) -> Placement:
        """Return a placement on nodes that are fit; see `FitNodes.place`."""
        return self._fit_nodes.place(place, wait_seconds)

    def start(self, placement: Placement) -> "RayLaunch":
        """Launch the workers, which go on from the latest checkpoint; those of earlier launches in the folder end."""
        return RayLaunch(functools.partial(self._fit, placement, LaunchMark(self._folder)))

    def run(self, placement: Placement) -> None:
        """Launch the workers and wait for their end; those that are lost are not launched again.

        Others may run beside it, with the same folder.

        Raises:
            InputError: A worker refused its input, or was lost.
        """
        try:
            RayLaunch(functools.partial(self._fit, placement, None, next_time="tries again")).wait()
        except WorkersLost as lost:
            raise InputError(f"{lost}; the same command tries again") from lost

    def _fit(self, placement: Placement, mark: LaunchMark | None, **words: str) -> BaseException | None:
        """Run the trainer to its end; return what its failure means, in `words` of `explained`."""
        last_words = LastWords(self._folder)
        try:
            remove_placement_groups()
            storage = tempfile.TemporaryDirectory(prefix="alexnet-ray-", ignore_cleanup_errors=True)
            lasting = contextlib.nullcontext() if mark is None else mark.lasting()
            with lasting, last_words.kept(), storage as path:
                try:
                    _trainer(self._worker(mark, last_words), placement, self._name, path).fit()
                except BaseException as error:
                    return explained(error, last_words.told(), **words)
        except BaseException as error:
            return explained(error, **words)
        return None

    def _worker(self, mark: LaunchMark | None, last_words: LastWords) -> Callable[[], None]:
        """Return what a worker runs; it is pickled, without this object."""
        work, stop_request = self._work, self._stop_request

        def worker() -> None:
            _watch_launch(mark, last_words)
            context = ray.train.get_context()
            rank, device = context.get_world_rank(), torch.device(get_device())
            wants_to_stop = {} if stop_request is None or rank else {"wants_to_stop": stop_request.is_made}
            work(World(rank, context.get_world_size(), device, **wants_to_stop))

        return worker


class RayLaunch:
    """A worker group of Ray Train, under way.

    Args:
        fit: Runs the workers to their end, and returns what their failure means.
    """

    def __init__(self, fit: Callable[[], BaseException | None]) -> None:
        self._failure: BaseException | None = None
        # Not the thread's end: Python 3.11 takes a thread whose join a signal interrupts for ended.
        self._has_ended = threading.Event()
        # In the main thread Ray would take Ctrl-C for itself.
        threading.Thread(target=self._run, args=(fit,), daemon=True).start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the workers' end, at most so long; return whether it has come.

        Raises:
            InputError: A worker refused its input, or met an error that lasts.
            WorkersLost: A worker was lost.
        """
        if not self._has_ended.wait(seconds):
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def _run(self, fit: Callable[[], BaseException | None]) -> None:
        self._failure = fit()
        self._has_ended.set()


def _trainer(worker: Callable[[], None], placement: Placement, name: str, storage: str) -> TorchTrainer:
    environment = ALLOCATOR_ENVIRONMENT | {"OMP_NUM_THREADS": str(placement.num_threads)}
    resources = {"CPU": placement.cpus_per_worker, "GPU": float(placement.gpus_per_worker)}
    on_nodes: dict[str, Any] = {}  # of the v2 API
    if placement.node_ids is not None:
        on_nodes["label_selector"] = {_NODE_ID: f"in({','.join(placement.node_ids)})"}
    return TorchTrainer(
        worker,
        torch_config=TorchConfig(backend=process_group_backend("cuda" if placement.gpus_per_worker else "cpu")),
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
            placement_strategy=placement.strategy.upper(),
            **on_nodes,
        ),
        # Ray's own storage holds nothing that we need: a run is resumed from its run folder.
        run_config=RunConfig(
            name=re.sub(r"[^\w.-]", "_", name, flags=re.ASCII),  # Ray's processes may have another locale
            storage_path=storage,
            failure_config=FailureConfig(max_failures=0, **_NO_RETRIES),
            callbacks=controller_callbacks(),
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]  # of the v2 API
        ),
    )


def _watch_launch(mark: LaunchMark | None, last_words: LastWords) -> None:
    """End this worker when its raylet is gone or its launch is over: Ray may leave it running, and others follow."""
    parent = os.getppid()
    last_words.prepare()

    def watch() -> None:
        while os.getppid() == parent and not (mark is not None and mark.is_over()):
            time.sleep(_POLL_SECONDS)
            last_words.prepare()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
