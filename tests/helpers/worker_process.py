"""Workers that train or evaluate a run together on this machine; see `worker_group.py`."""

import dataclasses
import itertools
from pathlib import Path

import torch
import torch.distributed as dist
from by_hand import ByHand
from worker_group import run_group

from cluster.worker import evaluation, stopping
from cluster.worker.evaluation_files import evaluate_run
from cluster.worker.options import WorkerOptions
from cluster.worker.training import train
from cluster.worker.world import World


def run_workers(world_size: int, task: str, *arguments: str | Path) -> None:
    """Run that many workers to their end.

    Args:
        world_size: Number of workers.
        task: `train`, `train-stopped`, the same with `-by-hand`, or `evaluate`.
        arguments: Of `train`: dataset, run, and perhaps the micro-batch size (empty: none) and the name of the
            exchange; of `evaluate`: dataset, run, split, crops and the file for the result.
    """
    run_group(world_size, __file__, "work", task, *arguments)


def work(task: str, dataset: str, run: str, *rest: str) -> None:
    """Be one of the workers."""
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    if task.startswith("train-stopped"):
        # Of three steps and an evaluation of batches of 2, each of which asks, the last worker wants to end it.
        evaluation.BATCH_SIZE, stopping.ASK_SECONDS = 2, 0
        questions = itertools.count(1)
        if world.rank == world.world_size - 1:
            world = dataclasses.replace(world, wants_to_stop=lambda: next(questions) > 4)
    if task.startswith("train"):
        micro_batch_size, exchange, *_ = *rest, *("", "allreduce")[len(rest) :]
        options = WorkerOptions(micro_batch_size=int(micro_batch_size) if micro_batch_size else None, exchange=exchange)
        make_exchange = ByHand if task.endswith("by-hand") else None
        train(Path(dataset), Path(run), world, options, make_exchange)
    else:
        split, crops, out = rest
        evaluate_run(Path(dataset), Path(run), split, crops, Path(out), world)
