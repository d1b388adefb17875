"""The exact exchanges end with the same weights, on any number of workers and after any change between them."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import ALONE, CONFIG, entries
from worker_group import run_group
from worker_process import run_workers

from cluster.run.run_folder import RunFolder
from cluster.worker.options import WorkerOptions
from cluster.worker.training import Trainer, train
from cluster.worker.world import World
from model.optim_config import OptimizerConfig
from pipeline.dataset import Dataset
from pipeline.online.augmentation import AugmentationConfig

pytestmark = pytest.mark.slow

NUM_STEPS, BATCH_SIZE, NUM_SAMPLES = 50, 13, 41
STRATEGIES = ("allreduce", "factors", "hybrid")
OPTIMIZERS = {
    "sgd": OptimizerConfig(learning_rate=0.02, weight_decay=5e-3, nesterov=True, warmup=0.2, schedule="cosine"),
    "lars": OptimizerConfig(name="lars", learning_rate=2.0, weight_decay=5e-3, warmup=0.2, schedule="poly"),
}
EXACT = dataclasses.replace(
    CONFIG,
    augmentation=AugmentationConfig(crop_size=26),
    global_batch_size=BATCH_SIZE,  # 2, 3 and 4 workers get uneven parts
    num_epochs=NUM_STEPS * BATCH_SIZE / NUM_SAMPLES,
    evaluations_per_epoch=0.1,
    stuck_after_epochs=100,
)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return RunFolder.open(path).checkpoints.load_latest()["model"]


def _assert_same(path: Path, reference: Path) -> None:
    mine, theirs = _weights(path), _weights(reference)
    assert list(mine) == list(theirs)
    for name, expected in theirs.items():
        assert mine[name].shape == expected.shape
        assert float((mine[name] - expected).abs().max()) <= 1e-10 * float(expected.abs().max()), (path, name)


def train_all(dataset: str, folder: str) -> None:
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    for run in sorted(Path(folder).iterdir()):
        train(Path(dataset), run, world, WorkerOptions(exchange=run.name.partition("-")[0]))


@pytest.fixture(scope="module")
def alone(raw_dataset, tmp_path_factory) -> dict[str, RunFolder]:
    """Runs of one worker by optimiser."""
    runs = {}
    for name, optimizer in OPTIMIZERS.items():
        config = dataclasses.replace(EXACT, optimizer=optimizer)
        runs[name] = RunFolder.create(tmp_path_factory.mktemp("alone") / name, config, raw_dataset)
        trainer = Trainer(raw_dataset, runs[name], ALONE)
        trainer.run()
        trainer.close()
        assert trainer.progress.step == NUM_STEPS
    return runs


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_weights_are_those_of_one_worker(alone, raw_dataset, tmp_path, world_size):
    for name, run in alone.items():
        for strategy in STRATEGIES:
            RunFolder.create(tmp_path / f"{strategy}-{name}", run.config, raw_dataset)
    run_group(world_size, __file__, "train_all", raw_dataset.path, tmp_path)
    for name, run in alone.items():
        for strategy in STRATEGIES:
            path = tmp_path / f"{strategy}-{name}"
            assert entries(RunFolder.open(path), "start")[0]["exchange"] == strategy
            assert not entries(RunFolder.open(path), "warning")
            _assert_same(path, run.path)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_may_change_its_exchange_and_its_workers_at_each_resume(alone, raw_dataset, tmp_path, optimizer):
    reference = alone[optimizer]
    run = RunFolder.create(tmp_path / "run", reference.config, raw_dataset)
    launches = [(2, "hybrid"), (3, "factors"), (4, "hybrid"), (2, "allreduce")]
    for world_size, strategy in launches:
        task = "train" if strategy == "allreduce" else "train-stopped"
        run_workers(world_size, task, raw_dataset.path, run.path, "", strategy)
    started = entries(run, "start")
    assert [(start["world_size"], start["exchange"]) for start in started] == launches
    steps = [start["step"] for start in started]
    assert steps == sorted(set(steps)) and steps[-1] < NUM_STEPS  # each was stopped, and went on
    assert run.result["num_steps"] == NUM_STEPS
    _assert_same(run.path, reference.path)


def test_an_exchange_of_two_launches_is_read_back_by_one_worker(alone, raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "run", alone["sgd"].config, raw_dataset)
    run_workers(3, "train-stopped", raw_dataset.path, run.path, "", "hybrid")
    trainer = Trainer(Dataset.open(raw_dataset.path), run, ALONE)
    trainer.run()
    trainer.close()
    _assert_same(run.path, alone["sgd"].path)
