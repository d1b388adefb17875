"""Launch workers on Ray Train, to train or evaluate: on the cluster of a submitted job, or on a local Ray of its own.

Ray brings placement and process groups. It carries no images, no metrics and no checkpoints: the run folder, which all
workers see, holds them. Nor does it carry the workers' output: what a person needs to know is in the run's log, and
Ray's own actors talk too much; all of it is in Ray's log folder.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

from pipeline.ray_executor import ray_session  # first: it sets variables that ray reads as it is imported

# isort: split
import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from cluster.allocator import ALLOCATOR_ENVIRONMENT
from cluster.placement import Placement
from cluster.world import World
from pipeline.command import InputError, Terminated


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
    """Return the resources of each node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def launch(work: Callable[[World], None], placement: Placement, name: str) -> None:
    """Run `work` on all workers and wait for its end.

    Args:
        work: What a worker does, given its place; it is pickled, with what it holds.
        placement: Of the workers.
        name: For Ray's logs.

    Raises:
        InputError: A worker refused its input, or was lost.
    """

    def worker() -> None:
        context = ray.train.get_context()
        work(World(context.get_world_rank(), context.get_world_size(), torch.device(get_device())))

    environment = ALLOCATOR_ENVIRONMENT | {"OMP_NUM_THREADS": str(placement.num_threads)}
    resources = {"CPU": placement.cpus_per_worker, "GPU": float(placement.gpus_per_worker)}
    with tempfile.TemporaryDirectory(prefix="alexnet-ray-") as storage:
        trainer = TorchTrainer(
            worker,
            scaling_config=ScalingConfig(
                num_workers=placement.num_workers,
                use_gpu=placement.gpus_per_worker > 0,
                resources_per_worker={name: amount for name, amount in resources.items() if amount},
            ),
            # Ray's own storage holds nothing that we need: a run is resumed from its run folder.
            run_config=RunConfig(
                name=name,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=0),
                worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]  # of the v2 API
            ),
        )
        _fit(trainer)


def _fit(trainer: TorchTrainer) -> None:
    """Run the trainer in a thread of its own: in the main thread Ray would take Ctrl-C for itself."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise _explained(failure[0])


def _explained(error: BaseException) -> BaseException:
    """Return the InputError that a worker raised, or one that says that a worker was lost; else the error itself."""
    failures = list(error.worker_failures.values()) if isinstance(error, ray.train.WorkerGroupError) else []
    for failure in failures:
        if isinstance(failure, InputError):
            return failure
    for failure in failures:
        if type(failure).__module__.partition(".")[0] == "ray":  # of Ray's own making: the process did not raise it
            cause = str(failure).strip().partition("\n")[0]
            return InputError(f"a worker was lost ({cause}); the same command tries again, and resumes a run")
    return error
