"""Workers of torch.distributed, for tests: processes that train or evaluate a run together on this machine.

Each is `python worker_process.py RANK WORLD_SIZE PORT TASK ARGUMENT...`, the task being
`train`, `train-stopped`, the same with `-by-hand`, or `evaluate`. The arguments of the first are dataset, run, and
perhaps the micro-batch size (empty: none) and the name of the exchange.
"""

import dataclasses
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from by_hand import ByHand

from cluster.worker import evaluation, stopping
from cluster.worker.evaluation_files import evaluate_run
from cluster.worker.options import WorkerOptions
from cluster.worker.training import train
from cluster.worker.world import World
from pipeline.paths import CHECKOUT


def run_workers(world_size: int, *arguments: str | Path) -> None:
    """Run that many workers to their end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(CHECKOUT)}
    commands = [
        [sys.executable, __file__, *map(str, (rank, world_size, port, *arguments))] for rank in range(world_size)
    ]
    workers = [subprocess.Popen(command, env=environment) for command in commands]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * world_size


def main() -> None:
    rank, world_size, port = (int(argument) for argument in sys.argv[1:4])
    task, dataset, run, *rest = sys.argv[4:]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    world = World(rank, world_size, torch.device("cpu"))
    if task.startswith("train-stopped"):
        # Of three steps and an evaluation of batches of 2, each of which asks, the last worker wants to end it.
        evaluation.BATCH_SIZE, stopping.ASK_SECONDS = 2, 0
        questions = itertools.count(1)
        if rank == world_size - 1:
            world = dataclasses.replace(world, wants_to_stop=lambda: next(questions) > 4)
    if task.startswith("train"):
        micro_batch_size, exchange, *_ = *rest, *("", "allreduce")[len(rest) :]
        options = WorkerOptions(micro_batch_size=int(micro_batch_size) if micro_batch_size else None, exchange=exchange)
        make_exchange = ByHand if task.endswith("by-hand") else None
        train(Path(dataset), Path(run), world, options, make_exchange)
    else:
        split, crops, out = rest
        evaluate_run(Path(dataset), Path(run), split, crops, Path(out), world)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
