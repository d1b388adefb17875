"""The project's own training loop in this process, stopped from inside after some steps."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu.trial import Trial
from cluster.run.run_folder import RunFolder
from cluster.worker.training import Trainer
from cluster.worker.world import World
from jobs.recipes import get_recipe
from pipeline.dataset import Dataset
from pipeline.online.batch import LoaderConfig

# A run that only trains: it is never evaluated, saved or given up.
ENDLESS = {
    "num_epochs": 100_000.0,
    "stuck_after_epochs": 1e6,
    "evaluations_per_epoch": 1e-5,
    "checkpoint_interval": 1_000_000,
}


class Enough(Exception):
    """All steps to watch are done."""


@dataclass(frozen=True, kw_only=True)
class CheckedWorld(World):
    """The place of a single worker, with other settings of the loader.

    Attributes:
        loader_fields: Fields of `LoaderConfig` that replace those of the worker.
    """

    loader_fields: dict[str, Any] = field(default_factory=dict)

    def loader_config(self, *arguments: Any, **options: Any) -> LoaderConfig:
        """Return the worker's settings for making batches, changed."""
        return dataclasses.replace(super().loader_config(*arguments, **options), **self.loader_fields)


def make_run(trial: Trial, dataset: Dataset, recipe: str, **changes: Any) -> RunFolder:
    """Make a run folder for a recipe with changed fields, in a precision that fits the device."""
    config = dataclasses.replace(get_recipe(recipe), **changes)
    if config.precision == "auto":
        config = dataclasses.replace(config, precision="float32" if trial.is_dry else "bfloat16")
    return RunFolder.create(Path(tempfile.mkdtemp(dir=trial.scratch)), config, dataset)


@contextlib.contextmanager
def open_trainer(
    trial: Trial,
    dataset: Dataset,
    run: RunFolder,
    micro_batch_size: int | None = None,
    **loader_fields: Any,
) -> Iterator[Trainer]:
    """Open a trainer on the device, and close it at the end."""
    world = CheckedWorld(rank=0, world_size=1, device=trial.device, loader_fields=loader_fields)
    trainer = Trainer(dataset, run, world, micro_batch_size)
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
