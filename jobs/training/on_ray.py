"""Train on Ray: on a local one started for this purpose, or on the cluster that this job was submitted to."""

import functools
from typing import TYPE_CHECKING

from cluster.launch.footprint import training_requirements
from cluster.launch.placement import WorkerRange, place_workers
from cluster.launch.ray_launch import RayCluster, training_session
from cluster.launch.ray_node_checks import FitNodes
from cluster.launch.ray_nodes import settled_nodes
from cluster.launch.supervisor import supervise
from cluster.run.config import TrainingConfig
from cluster.run.run_folder import stop_request_of
from cluster.worker.training import train
from jobs.training.job import TrainingJob

if TYPE_CHECKING:
    from jobs.train import Arguments


def train_on_ray(arguments: "Arguments", config: TrainingConfig, workers: WorkerRange | None) -> None:
    """Train to the run's end, on as many workers as the cluster has room for.

    Args:
        arguments: Command line.
        config: Recipe to train.
        workers: Allowed number of workers; None: as many as the cluster has room for now.
    """
    least, most = (1, 1) if workers is None else (workers.least, workers.most)
    job = TrainingJob.prepare(arguments, config, least)
    if job.is_finished():
        return
    requirements = training_requirements(config, job.dataset, job.run_path, arguments.exchange, (least, most))
    takes_all = workers is None  # all nodes are used, including slow ones
    prefers_native = job.computes_in_bfloat16 and not takes_all
    with training_session() as is_local, FitNodes(requirements, is_local, prefers_native=prefers_native) as fit_nodes:
        allowed = _allowed(workers, config, arguments)
        place = functools.partial(
            place_workers, workers=allowed, requested_cpus=arguments.cpus_per_worker, strategy=arguments.placement
        )
        placement = fit_nodes.place(place, needs_all=takes_all)
        job = job.in_precision(fit_nodes.emulations(placement))
        if job.computes_in_bfloat16 and not takes_all:
            fit_nodes.prefer_native()
        job.announce(f"{placement} on {'a local Ray' if is_local else 'the cluster'}", placement.num_workers)
        if job.is_dry:
            return
        work = functools.partial(train, job.data, job.run_path, options=arguments.worker_options)
        stop_request = stop_request_of(job.run_path)
        cluster = RayCluster(work, job.run_path.name, job.run_path, fit_nodes, stop_request)
        with job.begun() as (run, log):
            supervise(run, log, cluster, place, allowed.most)
    job.say_finished()


def _allowed(workers: WorkerRange | None, config: TrainingConfig, arguments: "Arguments") -> WorkerRange:
    """Return the allowed number of workers; if `workers` is None, as many as the cluster has room for now."""
    num_groups = config.global_batch_size // config.model.group_size  # further workers would have nothing to do
    if workers is None:
        usual = min(num_groups, place_workers(settled_nodes(), None, arguments.cpus_per_worker).num_workers)
        return WorkerRange(usual, usual)
    return WorkerRange(workers.least, max(workers.least, min(workers.most, num_groups)))
