"""Exact evaluation: each sample of a split once, on any number of workers, centre crop or ten crops.

Every worker fills the rows of its own samples, the sum over the workers combines them, and all results of a split
(top-1, loss, confusions) are computed from the combined rows, in the manifest's order. So results do not depend on the
number of workers, except that kernels may round a sample's logits differently in a batch of another size.
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

BATCH_SIZE = 250  # images per forward pass


@dataclass(frozen=True)
class Evaluation:
    """A model's results on a split, one row per sample in the manifest's order.

    Attributes:
        split: Name of the split.
        labels_N: Class index of each sample, int64.
        predicted_N: Class index that ranks first, int64; the lowest one if several are equal.
        probabilities_N: Probability of the predicted class, float64.
        ranks_N: Number of classes that rank above the label, int64; `NO_RANK` if the model gives NaN.
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
        """Build an evaluation from the rows of all workers together, as filled by `fill`.

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
        """Number of samples in the split."""
        return len(self.labels_N)

    def is_correct_N(self, k: int) -> np.ndarray:
        """Return for each sample whether its label is among the first k classes; bool (N,)."""
        return (self.ranks_N != NO_RANK) & (self.ranks_N < k)

    def summary(self) -> dict[str, Any]:
        """Return the split, its number of samples, the mean loss, and the top-1 and top-5 accuracy as fractions."""
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
    loader: EvalLoader | None = None,
) -> Evaluation | None:
    """Evaluate a model on a split; every worker calls this and gets the same result.

    Args:
        model: Model to evaluate; its mode (training or evaluation) is restored.
        dataset: Dataset to read.
        split: Split of the dataset.
        world: Place of this worker.
        run: Run of the model, which gives the crop, normalisation, precision and the training set's colours.
        crops: `ten` averages the softmax over the ten crops of the 2012 paper (section 4.1).
        stop: Agreement of the workers to stop; None: the evaluation is not interrupted.
        loader: Loader from `open_eval_loader` with the same arguments, which is rewound and kept open; None: one is
            opened, and closed at the end.

    Returns:
        The evaluation, or None if the workers were asked to stop before its end.

    Raises:
        RuntimeError: A sample of the manifest was not evaluated exactly once.
    """
    config = run.config
    batches = loader or open_eval_loader(dataset, split, world, run, crops)
    batches.rewind()
    rows = empty_rows(dataset.num_samples(split), world.device)
    was_training = model.training
    model.eval()
    # A worker may have one sample, and so one batch, less than another, but all workers must ask equally often.
    num_batches = math.ceil(math.ceil(dataset.num_samples(split) / world.world_size) / batch_size_of(crops))
    is_stopped = False
    if stop is not None:
        stop.renew()
    for _ in range(num_batches):
        if stop is not None:
            stop.ask()
        if (batch := next(batches, None)) is not None:
            fill(rows, batch, log_probabilities(model, batch.images, config, world.device))
        if is_stopped := stop is not None and stop.is_reached():
            break
    if loader is None:
        batches.close()
    model.train(was_training)
    if is_stopped:
        return None
    return Evaluation.of_rows(split, world.sum(rows).cpu())


def batch_size_of(crops: Crops) -> int:
    """Return the number of pictures in a batch."""
    return BATCH_SIZE // NUM_CROPS[crops]


def open_eval_loader(dataset: Dataset, split: str, world: World, run: RunFolder, crops: Crops = "centre") -> EvalLoader:
    """Open this worker's part of a split; the arguments are those of `evaluate`."""
    return EvalLoader(
        dataset,
        split,
        batch_size=batch_size_of(crops),
        rank=world.rank,
        world_size=world.world_size,
        augmentation=run.config.augmentation,
        color_basis=run.color_basis,
        mean_image_HWC=run.mean_image_HWC,
        ten_crops=crops == "ten",
        config=world.loader_config(run.config.decode),
    )


def empty_rows(num_samples: int, device: torch.device) -> torch.Tensor:
    """Return one row of zeros per sample on a model's device, for `fill`."""
    # float64 holds counts and class indices exactly; a row of zeros belongs to another worker's sample.
    return torch.zeros(num_samples, 6, dtype=torch.float64, device=device)


def fill(rows: torch.Tensor, batch: Batch, scores: torch.Tensor) -> None:
    """Fill the rows of a batch's samples without waiting for a GPU.

    Args:
        rows: Rows of all samples, on the model's device; copied to the CPU once, after the last batch.
        batch: Batch of an evaluation, whose positions are the sample ids.
        scores: Logarithms of the classes' probabilities.
    """
    best, predicted = scores.max(dim=1)
    losses, ranks = -scores.gather(1, batch.labels[:, None])[:, 0], label_ranks(scores, batch.labels)
    columns = (torch.ones_like(best), batch.labels, predicted, best.exp(), ranks, losses)
    rows.index_add_(0, batch.device_positions, torch.stack([column.double() for column in columns], dim=1))


def log_probabilities(
    model: nn.Module, images: torch.Tensor, config: TrainingConfig, device: torch.device
) -> torch.Tensor:
    """Return the logarithm of each class's probability, which is the softmax averaged over a picture's crops.

    Args:
        model: Model in evaluation mode.
        images: (N, 3, H, W), or (N, num_crops, 3, H, W), normalised, on the device.
        config: Recipe of the model.
        device: Device of the model.

    Returns:
        float64 (N, num_classes), on the device.
    """
    crops = images.flatten(0, -4).to(input_dtype(config.precision)).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), forward_context(config.precision, device):
        logits = model(crops)
    scores = logits.double().log_softmax(dim=1).unflatten(0, (len(images), -1))
    return scores.logsumexp(dim=1) - np.log(scores.shape[1])
