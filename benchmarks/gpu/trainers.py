"""The project's own training loop in this process, stopped from inside after some steps."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu.trial import Trial
from cluster.run.run_folder import RunFolder
from cluster.worker.options import WorkerOptions
from cluster.worker.training import Trainer
from cluster.worker.world import World
from jobs.recipes import get_recipe
from pipeline.dataset import Dataset
from pipeline.online.batch import Cache

# A run that only trains: it is never evaluated, saved or given up.
ENDLESS = {
    "num_epochs": 100_000.0,
    "stuck_after_epochs": 1e6,
    "evaluations_per_epoch": 1e-5,
    "checkpoint_interval": 1_000_000,
}


class Enough(Exception):
    """All steps to watch are done."""


def make_run(trial: Trial, dataset: Dataset, recipe: str, **changes: Any) -> RunFolder:
    """Make a run folder for a recipe with changed fields, in a precision that fits the device."""
    config = dataclasses.replace(get_recipe(recipe), **changes)
    if config.precision == "auto":
        config = dataclasses.replace(config, precision="float32" if trial.is_dry else "bfloat16")
    return RunFolder.create(Path(tempfile.mkdtemp(dir=trial.scratch)), config, dataset)


@contextlib.contextmanager
def open_trainer(
    trial: Trial, dataset: Dataset, run: RunFolder, *, cache: Cache = "none", micro_batch_size: int | None = None
) -> Iterator[Trainer]:
    """Open a trainer on the device, and close it at the end."""
    options = WorkerOptions(micro_batch_size=micro_batch_size, cache=cache)
    trainer = Trainer(dataset, run, World(0, 1, trial.device), options)
    try:
        yield trainer
    finally:
        trainer.close()


def train_until(trainer: Trainer, watch: Callable[[int], None]) -> None:
    """Train until `watch` raises `Enough`.

    Args:
        trainer: Trainer to run.
        watch: Function that is called after each update of the weights, with the number of steps so far.
    """
    num_steps = 0

    def count(*_: object) -> None:
        nonlocal num_steps
        num_steps += 1
        watch(num_steps)

    hook = register_optimizer_step_post_hook(count)
    try:
        trainer.run()
    except Enough:
        pass
    finally:
        hook.remove()
