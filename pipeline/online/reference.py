"""The specification of augmentation in plain NumPy: what the DALI graph must compute.

The float expression is DALI's own: one subtraction and one multiplication by the reciprocal, both in float32.
"""

import numpy as np

from pipeline.online.augmentation import AugmentationParameters

TEN_CROPS = tuple((x, y, mirror) for mirror in (0, 1) for x, y in ((0, 0), (2, 0), (0, 2), (2, 2), (1, 1)))
"""The paper's ten crops: corners and centre, then their mirror images; x and y in halves of the free range."""


def augment(
    pixels_NHWC: np.ndarray,
    parameters: AugmentationParameters[np.ndarray],
    crop_size: int,
    divisor_3: np.ndarray,
    mean_image_HWC: np.ndarray | None = None,
) -> np.ndarray:
    """Crop, mirror and normalise decoded pictures.

    Args:
        pixels_NHWC: Squares of the stored size, made by the dataset's resize rule; uint8 RGB.
        parameters: Parameters of the augmentation, one row per picture.
        crop_size: Side of the crop in pixels.
        divisor_3: Divisor of the mean-free pixels, float32 (3,), in grey levels.
        mean_image_HWC: Mean picture of the stored size, float32, in grey levels; cropped like the picture and
            subtracted.

    Returns:
        float32 (N, 3, crop_size, crop_size): (pixel [- mean pixel] - mean) * (1 / divisor).
    """
    reciprocal_3 = np.float32(1) / divisor_3
    images_NCHW = np.empty((len(pixels_NHWC), 3, crop_size, crop_size), dtype=np.float32)
    for index, pixels_HWC in enumerate(pixels_NHWC):
        left, top, mirror = parameters.placement_N3[index]
        window = np.s_[top : top + crop_size, left : left + crop_size]
        crop_HWC = pixels_HWC[window].astype(np.float32)
        if mean_image_HWC is not None:
            crop_HWC -= mean_image_HWC[window]
        if mirror:
            crop_HWC = crop_HWC[:, ::-1]
        images_NCHW[index] = ((crop_HWC - parameters.mean_N3[index]) * reciprocal_3).transpose(2, 0, 1)
    return images_NCHW


def ten_crops(
    pixels_NHWC: np.ndarray,
    parameters: AugmentationParameters[np.ndarray],
    crop_size: int,
    divisor_3: np.ndarray,
    mean_image_HWC: np.ndarray | None = None,
) -> np.ndarray:
    """Return `TEN_CROPS` of each picture, float32 (N, 10, 3, crop_size, crop_size).

    The arguments are those of `augment`; only the mean of the parameters is used.
    """
    crops = []
    for placement in ten_placements(pixels_NHWC.shape[1], crop_size):
        moved = AugmentationParameters(
            np.tile(np.array(placement, dtype=np.int32), (len(pixels_NHWC), 1)), parameters.mean_N3
        )
        crops.append(augment(pixels_NHWC, moved, crop_size, divisor_3, mean_image_HWC))
    return np.stack(crops, axis=1)


def ten_placements(stored_size: int, crop_size: int) -> list[tuple[int, int, int]]:
    """Return left, top and mirror of each of the ten crops, as in `AugmentationParameters.placement_N3`."""
    free = stored_size - crop_size
    return [(free * x // 2, free * y // 2, mirror) for x, y, mirror in TEN_CROPS]
