"""Training steps of a cell: those of a run, by the same `Learner` and exchange, on noise or on a dataset's pictures."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cluster.exchange.base import Exchange, MakeExchange
from cluster.exchange.bf16 import Bf16
from cluster.lab.scaling_table import NO_EXCHANGE, Cell
from cluster.run.config import Precision, TrainingConfig
from cluster.scaling.watch import Watch
from cluster.worker.exchanges import EXACT
from cluster.worker.learner import Learner
from cluster.worker.world import World
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.dataset import Dataset
from pipeline.loader import TrainLoader
from pipeline.online.augmentation import AugmentationConfig
from pipeline.online.order import RankShare
from pipeline.online.synthetic_loader import SyntheticLoader

_LEARNING_RATE = 1e-4  # nothing is learnt: what counts is that no weight overflows


class NoExchange(Exchange):
    """No exchange: each worker's gradient is that of its own samples, as large as that of all would be."""

    name = NO_EXCHANGE

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model

    @property
    def loss_scale(self) -> float:
        """Factor w / G."""
        return self.world_size / self.share.global_batch_size

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        """Return an empty context."""
        return contextlib.nullcontext()


MAKE_EXCHANGE: dict[str, MakeExchange] = {"bf16": Bf16, NO_EXCHANGE: NoExchange}
MAKE_EXCHANGE.update(EXACT.items())


class Training:
    """One worker's steps of a cell; `close` comes last.

    Args:
        cell: What is trained, and how.
        world: Place of this worker.
        num_steps: Number of steps that will be made at most.
        data: Dataset folders by their encoding, for cells with the loader `real`.

    Attributes:
        cell: What is trained, and how.
        learner: Model, optimiser and exchange.
    """

    def __init__(
        self, cell: Cell, world: World, num_steps: int, data: Mapping[str, Path] | None = None, seed: int = 0
    ) -> None:
        config = _recipe(cell, seed)
        self.cell = cell
        self._world, self._samples_seen, self._size = world, 0, cell.global_batch_size
        # Without an exchange, batch normalisation gathers no statistics either: no worker may wait for another.
        among = World(0, 1, world.device) if cell.exchange == NO_EXCHANGE else world
        self.learner = Learner(config, cell.num_classes, num_steps, among)
        group_size = config.model.group_size
        share = RankShare(cell.global_batch_size, world.rank, world.world_size, group_size)
        self.learner.connect(MAKE_EXCHANGE[cell.exchange](share))
        self._loader: TrainLoader | SyntheticLoader
        place: dict[str, Any] = {
            "global_batch_size": cell.global_batch_size,
            "rank": world.rank,
            "world_size": world.world_size,
            "seed": seed,
            "config": world.loader_config(decode=None, group_size=group_size),
        }
        if cell.loader == "real":
            dataset = Dataset.open((data or {})[cell.encoding])
            self._loader = TrainLoader(dataset, augmentation=config.augmentation, **place)
        else:
            self._loader = SyntheticLoader(
                num_samples=cell.global_batch_size,
                num_classes=cell.num_classes,
                crop_size=cell.image_size,
                **place,
            )

    def step(self) -> Watch:
        """Make a step, together with all workers; return what was seen of it."""
        if self._world.world_size > 1:
            dist.barrier()
        with Watch(self.learner, self._wait_for_device) as watch:
            with watch.waiting_for_data():
                batch = next(self._loader)
            self.learner.step([batch], self._samples_seen, 0)
        self._samples_seen += self._size
        return watch

    def close(self) -> None:
        """Stop the loader."""
        self._loader.close()

    @property
    def _wait_for_device(self) -> Callable[[], object]:
        device = self._world.device
        return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def _recipe(cell: Cell, seed: int) -> TrainingConfig:
    precision: Precision = "bfloat16" if cell.precision == "bfloat16" else "float32"
    return TrainingConfig(
        name="scaling",
        model=ModelConfig(name=cell.model),
        optimizer=OptimizerConfig(learning_rate=_LEARNING_RATE),
        augmentation=AugmentationConfig(crop_size=cell.image_size),
        global_batch_size=cell.global_batch_size,
        num_epochs=1,
        precision=precision,
        synthetic_data=cell.loader == "synthetic",
        seed=seed,
    )
