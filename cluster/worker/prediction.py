"""Predictions of a run's model for pictures that are not in a dataset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation import BATCH_SIZE, log_probabilities
from cluster.worker.evaluation_options import NUM_CROPS, Crops
from cluster.worker.precision import fitting_precision_here
from cluster.worker.trained_model import load_model
from pipeline.command import InputError
from pipeline.pictures.encode import EncodingConfig
from pipeline.pictures.picture_files import evaluation_images, read_square


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for a picture.

    Attributes:
        path: Path of the picture.
        square_HWC: Picture before it was cropped, uint8 RGB.
        class_indices: Indices of the first five classes, or of all if there are fewer.
        probabilities: Probabilities of these classes.
        true_class_index: Index of the class whose wnid or name is the name of the file's folder, or None.
    """

    path: Path
    square_HWC: np.ndarray
    class_indices: list[int]
    probabilities: list[float]
    true_class_index: int | None


def predict(
    paths: Sequence[Path],
    run: RunFolder,
    crops: Crops,
    device: torch.device,
    refused: dict[Path, str] | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each picture file, in order.

    Args:
        paths: Paths of the files.
        run: Run of the model.
        crops: Crops of a picture that the model sees.
        device: Device to compute on.
        refused: Receives path -> reason for files that are not pictures, which are left out. None: the first such file
            is an error.

    Raises:
        InputError: The run has no checkpoint, or a file is not a picture.
    """
    classifier = Classifier(run, device)
    classes_by_folder = classes_by_folder_name(run.wnids, run.class_names)
    batch_size, encoding = BATCH_SIZE // NUM_CROPS[crops], run.encoding
    for first in range(0, len(paths), batch_size):
        read = [(path, _read(path, encoding, refused)) for path in paths[first : first + batch_size]]
        chunk, squares = [path for path, s in read if s is not None], [s for _, s in read if s is not None]
        if not squares:
            continue
        for path, square_HWC, (classes, probabilities) in zip(
            chunk, squares, classifier.best_classes(squares, crops), strict=True
        ):
            true_class = classes_by_folder.get(path.absolute().parent.name)
            yield Prediction(path, square_HWC, classes, probabilities, true_class)


class Classifier:
    """A run's trained model, which names the best classes of pictures.

    It computes in the run's precision, or in float32, with a message, if this device would emulate that precision.

    Attributes:
        model: The network, in evaluation mode.
        step: Step of its weights.
    """

    def __init__(self, run: RunFolder, device: torch.device) -> None:
        """Load the model.

        Raises:
            InputError: The run has no complete checkpoint.
        """
        self._run = run.in_precision(fitting_precision_here(run.config.precision, device))
        self._device = device
        self.model, self.step = load_model(self._run, device)

    def best_classes(
        self, squares_NHWC: Sequence[np.ndarray], crops: Crops = "centre"
    ) -> list[tuple[list[int], list[float]]]:
        """Return the first five classes of each picture, or all if there are fewer, and their probabilities.

        Among equal probabilities the lower class index ranks first.

        Args:
            squares_NHWC: Pictures of the stored size, uint8 RGB; at most as many as fit into one forward pass.
            crops: Crops of a picture that the model sees.

        Raises:
            InputError: The model gives NaN or infinity.
        """
        run = self._run
        images = evaluation_images(
            squares_NHWC, run.config.augmentation, run.color_basis, run.mean_image_HWC, ten_crops=crops == "ten"
        )
        scores = log_probabilities(self.model, torch.from_numpy(images).to(self._device), run.config, self._device)
        if not scores.isfinite().all():
            raise InputError(f"the model of {run.path} gives NaN or infinity: its training diverged")
        ordered, indices = scores.exp().sort(dim=1, descending=True, stable=True)
        return list(zip(indices[:, :5].tolist(), ordered[:, :5].tolist(), strict=True))


def _read(path: Path, encoding: EncodingConfig, refused: dict[Path, str] | None) -> np.ndarray | None:
    try:
        return read_square(path, encoding)
    except InputError as error:
        if refused is None:
            raise
        refused[path] = str(error)
        return None


def classes_by_folder_name(wnids: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Return wnid or name of a class -> class index; names that several classes share are left out."""
    by_name: dict[str, int] = {name: index for index, name in enumerate(names) if names.count(name) == 1}
    return by_name | {wnid: index for index, wnid in enumerate(wnids)}
