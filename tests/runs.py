"""Runs of the worker loop, for tests: a small recipe, several real processes, and what stands in a run's log."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from cluster.config import TrainingConfig
from cluster.run_folder import RunFolder
from cluster.world import World
from model.alexnet import ModelConfig
from model.optim import OptimizerConfig
from pipeline.augmentation import AugmentationConfig
from pipeline.dataset import Dataset

ALONE = World(0, 1, torch.device("cpu"))
CONFIG = TrainingConfig(
    name="test",
    model=ModelConfig(name="alexnet_small"),
    optimizer=OptimizerConfig(learning_rate=0.01, warmup=0.2, schedule="cosine"),
    augmentation=AugmentationConfig(crop_size=28),
    global_batch_size=12,
    num_epochs=3,  # 10 steps of 12 over 41 samples, with batches that straddle epochs
    precision="float64",
    checkpoint_interval=4,
)


def train_with_processes(dataset: Dataset, run: RunFolder, world_size: int, micro_batch_size: int | None = None):
    """Train a run to its end with `world_size` processes that exchange gradients by gloo."""
    script, port = Path(__file__).parent / "worker_process.py", _free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    options = [] if micro_batch_size is None else [str(micro_batch_size)]
    workers = [
        subprocess.Popen(
            [sys.executable, script, *map(str, (rank, world_size, port, dataset.path, run.path)), *options],
            env=environment,
        )
        for rank in range(world_size)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * world_size


def entries(run: RunFolder, kind: str) -> list[dict]:
    """Return the log's entries of a kind."""
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run: RunFolder) -> list[float]:
    """Return each step's loss."""
    return [loss for line in entries(run, "step") for loss in line["losses"]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
