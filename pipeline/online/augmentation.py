"""Random crop, flip and colour noise from a counter-based generator, which has no state.

The parameters of a sample are a pure function of (seed, epoch, sample id): the words of Philox4x32-10 under the key
`seed` at the counter (sample id, epoch, stream). They are the same on every worker, before and after a restart.
`graph.py` and `reference.py` only apply them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

import numpy as np

from pipeline.format.color import ColorBasis, ColorNoiseConvention
from pipeline.online.philox import philox4x32, seed_key, split_words
from pipeline.online.random_streams import CounterStream

_ALPHA_RESOLUTION = 2.0**16
Subtract = Literal["mean", "mean_image"]
Values = TypeVar("Values")


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Processing of a stored picture on its way to the model.

    Attributes:
        crop_size: Side of the random (training) or centre (evaluation) crop in pixels; None: use `crop_fraction`.
        crop_fraction: Side of the crop as a fraction of the stored side, rounded down to an even number of pixels; by
            default the paper's 224 of 256.
        flip: Mirror left-right with probability 1/2.
        color_noise_sigma: Standard deviation of the colour noise's coefficients; 0 switches it off. The paper has 0.1.
        color_noise_convention: See `pipeline.format.color`.
        subtract: Mean that is subtracted from the pixels: the training set's mean colour (`mean`), or its mean picture,
            cropped like the sample (`mean_image`, as in the paper). Both are in the dataset's statistics.
        divide_by_std: Divide by the training set's standard deviation after subtracting its mean.
    """

    crop_size: int | None = None
    crop_fraction: float = 7 / 8
    flip: bool = True
    color_noise_sigma: float = 0.1
    color_noise_convention: ColorNoiseConvention = "fb"
    subtract: Subtract = "mean"
    divide_by_std: bool = True

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: A field has a bad value; the message names the field, the value and what would be right.
        """
        if self.crop_size is not None and self.crop_size < 1:
            raise ValueError(f"crop_size is {self.crop_size}; it must be at least 1, or None for a fraction")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction is {self.crop_fraction}; it must be above 0 and at most 1")
        if self.color_noise_sigma < 0:
            raise ValueError(f"color_noise_sigma is {self.color_noise_sigma}; it must not be negative")
        known = get_args(ColorNoiseConvention)
        if self.color_noise_convention not in known:
            raise ValueError(f"color_noise_convention is {self.color_noise_convention!r}; known: {', '.join(known)}")
        if self.subtract not in get_args(Subtract):
            raise ValueError(f"subtract is {self.subtract!r}; known: {', '.join(get_args(Subtract))}")

    def crop_of(self, stored_size: int) -> int:
        """Return the crop's side for pictures stored at `stored_size` pixels.

        Raises:
            ValueError: The crop is larger than the stored pictures.
        """
        crop = self.crop_size if self.crop_size is not None else max(1, int(stored_size * self.crop_fraction) // 2 * 2)
        if crop > stored_size:
            raise ValueError(
                f"crop_size is {crop}, but the pictures are stored at {stored_size}; at most {stored_size} fits"
            )
        return crop


@dataclass(frozen=True)
class AugmentationParameters(Generic[Values]):
    """Parameters of the augmentation, one row per sample: arrays, or the nodes of a DALI graph that stand for them.

    Attributes:
        placement_N3: Offsets of the crop from the left and from the top in pixels, each in
            [0, stored_size - crop_size], and 1 if it is mirrored left-right, else 0; int32 (N, 3).
        mean_N3: Value to subtract from the pixels, in grey levels, float32 (N, 3): the training set's mean (zero if its
            mean picture is subtracted as well) less the sample's colour noise, so that normalisation and colour noise
            are one operation.
    """

    placement_N3: Values
    mean_N3: Values

    def values(self) -> tuple[Values, ...]:
        """Return the values in the order of `PARAMETERS`, in which they are fed to a graph."""
        return tuple(getattr(self, name) for name in PARAMETERS)


PARAMETERS = {"placement_N3": ("int32", 1), "mean_N3": ("float32", 1)}
"""Name of each parameter -> its dtype, and the number of dimensions of a sample's value."""


def draw_parameters(
    config: AugmentationConfig,
    basis: ColorBasis,
    stored_size: int,
    seed: int,
    epochs_N: np.ndarray,
    sample_ids_N: np.ndarray,
) -> AugmentationParameters[np.ndarray]:
    """Return the training parameters of each (epoch, sample id); shapes in `AugmentationParameters`."""
    has_noise = config.color_noise_sigma > 0
    streams = [CounterStream.GEOMETRY, *([CounterStream.COLOR] if has_noise else [])]
    words_N4, *color_words = _words(seed, epochs_N, sample_ids_N, streams)
    num_offsets = np.uint64(stored_size - config.crop_of(stored_size) + 1)
    # The upper half of a word times the number of offsets is uniform to within num_offsets / 2**32.
    offsets_N2 = (words_N4[:, :2] * num_offsets >> np.uint64(32)).astype(np.int32)
    mirror_N1 = (words_N4[:, 2:3] >> np.uint64(31)).astype(np.int32) * np.int32(config.flip)
    noise_N3 = np.zeros((len(sample_ids_N), 3))
    if has_noise:
        alpha_N3 = _normals(color_words[0]) * config.color_noise_sigma
        # Transcendental functions differ by an ulp between processors. Rounding makes the coefficients the same
        # everywhere.
        alpha_N3 = np.round(alpha_N3 * _ALPHA_RESOLUTION) / _ALPHA_RESOLUTION
        noise_N3 = basis.noise(alpha_N3, config.color_noise_convention)
    mean_N3 = (_mean(config, basis) - noise_N3).astype(np.float32)
    return AugmentationParameters(np.concatenate([offsets_N2, mirror_N1], axis=1), mean_N3)


def center_parameters(
    config: AugmentationConfig, basis: ColorBasis, stored_size: int, num_samples: int
) -> AugmentationParameters[np.ndarray]:
    """Return the evaluation parameters: centre crop, no flip, no noise."""
    offset = (stored_size - config.crop_of(stored_size)) // 2
    placement_N3 = np.tile(np.array([offset, offset, 0], dtype=np.int32), (num_samples, 1))
    mean_N3 = np.tile(_mean(config, basis).astype(np.float32), (num_samples, 1))
    return AugmentationParameters(placement_N3, mean_N3)


def divisor(config: AugmentationConfig, basis: ColorBasis) -> np.ndarray:
    """Return the divisor of the mean-free pixels: float32 (3,), in grey levels; ones without `divide_by_std`."""
    if not config.divide_by_std:
        return np.ones(3, dtype=np.float32)
    # A channel without any variation (a training set of one colour) is not divided.
    std_3 = basis.std_3 * basis.pixel_scale
    return np.where(std_3 > 0, std_3, 1.0).astype(np.float32)


def _mean(config: AugmentationConfig, basis: ColorBasis) -> np.ndarray:
    return basis.mean_3 * basis.pixel_scale if config.subtract == "mean" else np.zeros(3)


def _words(seed: int, epochs_N: np.ndarray, sample_ids_N: np.ndarray, streams: Sequence[CounterStream]) -> np.ndarray:
    """Return four words for each sample in each stream: uint64 (streams, N, 4)."""
    counters_SN4 = np.empty((len(streams), len(sample_ids_N), 4), dtype=np.uint32)
    counters_SN4[..., 0], counters_SN4[..., 1] = split_words(sample_ids_N)
    counters_SN4[..., 2], _ = split_words(epochs_N)
    counters_SN4[..., 3] = np.array(streams, dtype=np.uint32)[:, None]
    words = philox4x32(counters_SN4.reshape(-1, 4), seed_key(seed))
    return words.astype(np.uint64).reshape(counters_SN4.shape)


def _normals(words_N4: np.ndarray) -> np.ndarray:
    """Turn four uniform words into three standard normal numbers (Box and Muller 1958); float64 (N, 3)."""
    uniform_N4 = (words_N4 + 0.5) / 2.0**32  # strictly inside (0, 1), so the logarithm is finite
    radius_N2 = np.sqrt(-2.0 * np.log(uniform_N4[:, 0::2]))
    angle_N2 = 2.0 * np.pi * uniform_N4[:, 1::2]
    return np.stack(
        [
            radius_N2[:, 0] * np.cos(angle_N2[:, 0]),
            radius_N2[:, 0] * np.sin(angle_N2[:, 0]),
            radius_N2[:, 1] * np.cos(angle_N2[:, 1]),
        ],
        axis=1,
    )
