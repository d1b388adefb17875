"""Exact evaluation: each sample of a split once, on any number of workers."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from cluster.precision import forward_context, input_dtype
from cluster.run_folder import RunFolder
from cluster.world import World
from model.metrics import count_correct
from pipeline.dataset import Dataset
from pipeline.loader import EvalLoader

_BATCH_SIZE = 250


@dataclass(frozen=True)
class Evaluation:
    """Result on one split.

    Attributes:
        split: Name.
        num_samples: Evaluated; equals the split's size.
        loss: Mean cross-entropy.
        top1: Fraction of samples whose label ranks first.
        top5: Fraction of samples whose label is among the first five.
    """

    split: str
    num_samples: int
    loss: float
    top1: float
    top5: float


def evaluate(model: nn.Module, dataset: Dataset, split: str, world: World, run: RunFolder) -> Evaluation:
    """Evaluate a model on a split; all workers call it and get the same result.

    Args:
        model: Left in the mode (training or evaluation) in which it came.
        dataset: To read.
        split: Of it.
        world: Of this worker.
        run: Of the model: its recipe's crop, normalisation and precision, and its training set's colours.

    Raises:
        RuntimeError: The number of samples seen is not the manifest's.
    """
    config = run.config
    loader = EvalLoader(
        dataset,
        split,
        batch_size=_BATCH_SIZE,
        rank=world.rank,
        world_size=world.world_size,
        augmentation=config.augmentation,
        color_basis=run.color_basis,
        mean_image_HWC=run.mean_image_HWC,
        config=world.loader_config(config.decode),
    )
    totals = torch.zeros(4, dtype=torch.float64)  # samples, sum of losses, top-1, top-5: counts are exact to 2**53
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            images = batch.images.to(input_dtype(config.precision)).contiguous(memory_format=torch.channels_last)
            with forward_context(config.precision, world.device):
                logits = model(images)
            loss = functional.cross_entropy(logits.double(), batch.labels, reduction="sum")
            correct = count_correct(logits, batch.labels)
            totals += torch.tensor([len(batch.labels), loss.item(), *correct.tolist()], dtype=torch.float64)
    loader.close()
    model.train(was_training)
    num_samples, loss_sum, top1, top5 = world.sum(totals).tolist()
    if num_samples != dataset.num_samples(split):
        raise RuntimeError(
            f"{int(num_samples)} samples of {split} were evaluated, there are {dataset.num_samples(split)}"
        )
    return Evaluation(split, int(num_samples), loss_sum / num_samples, top1 / num_samples, top5 / num_samples)
