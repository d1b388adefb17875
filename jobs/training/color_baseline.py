"""The simplest classifier worth beating: a picture gets the class whose mean colour is nearest to its own.

    m_i = mean over the pixels of picture i             RGB, grey levels, of the stored square
    c_k = mean of m_i over the training pictures i of class k
    guess of picture j = argmin_k |m_j - c_k|           of equally near classes, the first

It knows nothing of shapes. A network that does no better has learnt the colours, or nothing.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.dataset import Dataset
from pipeline.online.shard_reader import ShardReader
from pipeline.pictures.decode import decode_picture

_MOST_TRAIN, _MOST_HELD_OUT = 20_000, 10_000  # pictures that are read; each split is shuffled already


@dataclass(frozen=True)
class ColorBaseline:
    """What the nearest mean colour guesses.

    Attributes:
        num_samples: Number of held-out pictures.
        top1: Fraction of them whose class was guessed.
    """

    num_samples: int
    top1: float


def color_baseline(dataset: Dataset, split: str = "val") -> ColorBaseline:
    """Classify the pictures of a split by the mean colours of the training pictures' classes.

    Of a large dataset, the first 20,000 training pictures and 10,000 pictures of the split are read.
    """
    means_N3, labels_N = _mean_colors(dataset, "train", _MOST_TRAIN)
    held_out_N3, held_out_labels_N = _mean_colors(dataset, split, _MOST_HELD_OUT)
    guesses_N = nearest_class(means_N3, labels_N, held_out_N3)
    return ColorBaseline(len(held_out_N3), float((guesses_N == held_out_labels_N).mean()))


def nearest_class(colors_N3: np.ndarray, labels_N: np.ndarray, others_M3: np.ndarray) -> np.ndarray:
    """Return the class of each of `others_M3` whose mean colour is nearest; int64 (M,)."""
    classes_K = np.unique(labels_N)
    centers_K3 = np.stack([colors_N3[labels_N == label].mean(axis=0) for label in classes_K])
    distances_MK = np.stack([np.square(others_M3 - center_3).sum(axis=1) for center_3 in centers_K3], axis=1)
    return classes_K[distances_MK.argmin(axis=1)]


def _mean_colors(dataset: Dataset, split: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean colour of each picture, float64 (N, 3), and its class, int64 (N,)."""
    reader = ShardReader(dataset, split)
    num_samples = min(most, reader.num_samples)
    colors_N3 = np.empty((num_samples, 3))
    for sample_id in range(num_samples):
        content = reader.read(sample_id)
        pixels_HWC = content if dataset.member == "npy" else decode_picture(content.tobytes(), "note").pixels_HWC
        colors_N3[sample_id] = pixels_HWC.mean(axis=(0, 1), dtype=np.float64)
    return colors_N3, reader.class_indices[:num_samples]
