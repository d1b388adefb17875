"""Preparation of picture files from anywhere for evaluation, as if they came from a dataset.

    file -> decode, audit -> square or whole, resized -> encode -> decode -> square    (as the offline stage stores it)
         -> centre crop or ten crops, normalised                                       (reference.py)

The pictures are stored by the same code as a dataset's, including JPEG's loss. For the encodings `raw` and `jpeg`, the
images have the same bits as those of `EvalLoader` on the CPU. For `original`, DALI resizes there and torch here: the
images differ by less than half a grey level on average, by at most 4 in the tests' centre crops, and by more at the
very edge of the square, where DALI's filter also sees the rest of the picture. A GPU's JPEG decoder differs by a few
grey levels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.command import InputError
from pipeline.format.color import ColorBasis
from pipeline.online import reference
from pipeline.online.augmentation import AugmentationConfig, center_parameters, divisor
from pipeline.pictures.decode import RejectedPicture, decode_picture
from pipeline.pictures.encode import EncodingConfig, store_picture


def read_square(path: Path, encoding: EncodingConfig) -> np.ndarray:
    """Return a picture file as evaluation sees it before the crop.

    Args:
        path: Picture file of any format that the offline stage reads.
        encoding: Encoding of the dataset, with its stored size.

    Returns:
        Pixels, uint8 RGB (size, size, 3).

    Raises:
        InputError: The file can't be read or is not a complete picture; the message names it.
    """
    try:
        return square_of(path.read_bytes(), encoding)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}; name picture files") from error
    except RejectedPicture as error:
        raise InputError(f"{path} is not a complete picture ({error}); leave it out") from error


def square_of(content: bytes | np.ndarray, encoding: EncodingConfig) -> np.ndarray:
    """Return a picture as evaluation sees it before the crop.

    Args:
        content: Bytes of a file, or pixels, uint8 RGB (H, W, 3).
        encoding: Encoding of the dataset, with its stored size.

    Returns:
        Pixels, uint8 RGB (size, size, 3).

    Raises:
        RejectedPicture: The bytes are not a complete picture.
    """
    stored = store_picture(content, encoding)
    if encoding.encoding == "raw":
        return stored.pixels_HWC
    square = EncodingConfig(encoding="raw", size=encoding.size)
    return store_picture(decode_picture(stored.data).pixels_HWC, square).pixels_HWC


def evaluation_images(
    squares_NHWC: Sequence[np.ndarray],
    augmentation: AugmentationConfig,
    basis: ColorBasis,
    mean_image_HWC: np.ndarray | None,
    *,
    ten_crops: bool,
) -> np.ndarray:
    """Return a model's input for evaluation: float32 (N, 3, crop, crop), or (N, 10, 3, crop, crop) with ten crops.

    Args:
        squares_NHWC: Pictures of the stored size, uint8 RGB.
        augmentation: Augmentation of the model's recipe.
        basis: Colours of the model's training set.
        mean_image_HWC: Mean image of the training set, if the recipe subtracts it.
        ten_crops: True for `pipeline.online.reference.TEN_CROPS` instead of the centre crop.
    """
    pixels_NHWC = np.stack(squares_NHWC)
    size = pixels_NHWC.shape[1]
    parameters = center_parameters(augmentation, basis, size, len(pixels_NHWC))
    crop = reference.ten_crops if ten_crops else reference.augment
    return crop(pixels_NHWC, parameters, augmentation.crop_of(size), divisor(augmentation, basis), mean_image_HWC)
