"""Exact evaluation: each sample of a split once, on any number of workers, centre crop or ten crops.

Every worker fills the rows of its own samples, the sum over the workers joins them, and all that is told of a split
(top-1, loss, confusions) is computed from the joined rows, in the manifest's order. So no number depends on how many
workers there were, but for what a sample's own logits do: kernels may round them otherwise in a batch of another size.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation_options import NUM_CROPS, Crops
from cluster.worker.precision import forward_context, input_dtype
from cluster.worker.stopping import StopAgreement
from cluster.worker.world import World
from model.metrics import NO_RANK, label_ranks
from pipeline.dataset import Dataset
from pipeline.loader import Batch, EvalLoader

BATCH_SIZE = 250  # images that go through the model at once


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a split, one row per sample in the manifest's order.

    Attributes:
        split: Name.
        labels_N: Class index of each sample, int64.
        predicted_N: Class index that ranks first, int64; of equal ones the lowest.
        probabilities_N: Of the predicted class, float64.
        ranks_N: Number of classes ahead of the label, int64; `NO_RANK` where the model gives NaN.
        losses_N: Negative logarithm of the label's probability, float64.
    """

    split: str
    labels_N: np.ndarray
    predicted_N: np.ndarray
    probabilities_N: np.ndarray
    ranks_N: np.ndarray
    losses_N: np.ndarray

    @classmethod
    def of_rows(cls, split: str, rows: torch.Tensor) -> "Evaluation":
        """Return what rows hold that `fill` has filled, of all workers together.

        Raises:
            RuntimeError: A row was not filled exactly once.
        """
        times_seen, labels, predicted, probabilities, ranks, losses = rows.numpy().T
        if not (times_seen == 1).all():
            raise RuntimeError(f"{int((times_seen != 1).sum())} samples of {split} were not evaluated exactly once")
        labels, predicted, ranks = (column.astype(np.int64) for column in (labels, predicted, ranks))
        return cls(split, labels, predicted, probabilities, ranks, losses)

    @property
    def num_samples(self) -> int:
        """Number of samples, that of the split."""
        return len(self.labels_N)

    def is_correct_N(self, k: int) -> np.ndarray:
        """Return which samples' labels are among the first k; bool (N,)."""
        return (self.ranks_N != NO_RANK) & (self.ranks_N < k)

    def summary(self) -> dict[str, Any]:
        """Return the split, its number of samples, the mean loss, and top-1 and top-5 as fractions."""
        top1, top5 = (int(self.is_correct_N(k).sum()) / self.num_samples for k in (1, 5))
        loss = float(self.losses_N.mean())
        return {"split": self.split, "num_samples": self.num_samples, "loss": loss, "top1": top1, "top5": top5}


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    world: World,
    run: RunFolder,
    crops: Crops = "centre",
    stop: StopAgreement | None = None,
) -> Evaluation | None:
    """Evaluate a model on a split; all workers call it and get the same result.

    Args:
        model: Left in the mode (training or evaluation) in which it came.
        dataset: To read.
        split: Of it.
        world: Of this worker.
        run: Of the model: its recipe's crop, normalisation and precision, and its training set's colours.
        crops: `ten` averages the softmax over the ten crops of the 2012 paper (section 4.1).
        stop: By which workers agree to stop; None: they don't.

    Returns:
        The evaluation, or None where the workers were asked to stop before its end.

    Raises:
        RuntimeError: A sample of the manifest was not evaluated exactly once.
    """
    config, batch_size = run.config, BATCH_SIZE // NUM_CROPS[crops]
    loader = EvalLoader(
        dataset,
        split,
        batch_size=batch_size,
        rank=world.rank,
        world_size=world.world_size,
        augmentation=config.augmentation,
        color_basis=run.color_basis,
        mean_image_HWC=run.mean_image_HWC,
        ten_crops=crops == "ten",
        config=world.loader_config(config.decode),
    )
    rows = empty_rows(dataset.num_samples(split))
    was_training = model.training
    model.eval()
    # A worker may have a sample, and so a batch, less than another; all agree equally often.
    num_batches = math.ceil(math.ceil(dataset.num_samples(split) / world.world_size) / batch_size)
    is_stopped = False
    for _ in range(num_batches):
        if stop is not None:
            stop.ask()
        if (batch := next(loader, None)) is not None:
            fill(rows, batch, log_probabilities(model, batch.images, config, world.device))
        if is_stopped := stop is not None and stop.is_reached():
            break
    loader.close()
    model.train(was_training)
    if is_stopped:
        return None
    return Evaluation.of_rows(split, world.sum(rows))


def empty_rows(num_samples: int) -> torch.Tensor:
    """Return a row per sample, for `fill`."""
    # float64 holds counts and class indices exactly; a row of zeros is a sample of another worker.
    return torch.zeros(num_samples, 6, dtype=torch.float64)


def fill(rows: torch.Tensor, batch: Batch, scores: torch.Tensor) -> None:
    """Fill the rows of a batch's samples from the logarithms of their classes' probabilities."""
    best, predicted = scores.max(dim=1)
    losses, ranks = -scores.gather(1, batch.labels[:, None])[:, 0], label_ranks(scores, batch.labels)
    columns = (torch.ones_like(best), batch.labels, predicted, best.exp(), ranks, losses)
    rows.index_add_(0, batch.sample_ids, torch.stack([column.double() for column in columns], dim=1).cpu())


def log_probabilities(
    model: nn.Module, images: torch.Tensor, config: TrainingConfig, device: torch.device
) -> torch.Tensor:
    """Return the logarithm of each class's probability: of the softmax, averaged over a picture's crops.

    Args:
        model: In evaluation mode.
        images: (N, 3, H, W), or (N, num_crops, 3, H, W), normalised, on the device.
        config: Of the model.
        device: Of the model.

    Returns:
        float64 (N, num_classes), on the device.
    """
    crops = images.flatten(0, -4).to(input_dtype(config.precision)).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), forward_context(config.precision, device):
        logits = model(crops)
    scores = logits.double().log_softmax(dim=1).unflatten(0, (len(images), -1))
    return scores.logsumexp(dim=1) - np.log(scores.shape[1])
