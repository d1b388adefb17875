"""Runs of the worker loop, for tests: a small recipe, the recipes' stored sizes, and what stands in a run's log."""

import json
import subprocess
import time
from pathlib import Path

import torch

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import METRICS_JSONL, Steps, only, read_metrics
from cluster.worker.world import World
from jobs.recipes import RECIPES
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.embedded import STORED_SIZE
from pipeline.online.augmentation import AugmentationConfig

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
    checkpoint_seconds=0,
)
IMAGENET_SIZE = 256
STORED_SIZES = dict.fromkeys(RECIPES, IMAGENET_SIZE) | {  # side of the stored pictures, by recipe
    "small_demo": 28,
    "synthetic_demo": STORED_SIZE,
    "own_pictures": 80,
    "mnist_tutorial": 28,
    "cifar_tutorial": 32,
}


def entries(run: RunFolder, kind: str) -> list[dict]:
    """Return the log's entries of a kind."""
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run: RunFolder) -> list[float]:
    """Return each step's loss."""
    return [loss for line in entries(run, "step") for loss in line["losses"]]


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until a run has logged a step: what its process prints becomes rare."""
    while not any(line.step >= step for line in only(Steps, read_metrics(run / METRICS_JSONL))):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
