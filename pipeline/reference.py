"""What the DALI graph must compute, in plain NumPy: the specification of augmentation.

The float expression is DALI's own: one subtraction and one multiplication by the reciprocal, both in float32.
"""

import numpy as np

from pipeline.augmentation import AugmentationParameters


def augment(
    pixels_NHWC: np.ndarray, parameters: AugmentationParameters, crop_size: int, divisor_3: np.ndarray
) -> np.ndarray:
    """Crop, mirror and normalise decoded pictures.

    Args:
        pixels_NHWC: uint8 RGB at the stored size.
        parameters: One row a picture.
        crop_size: Side of the crop in pixels.
        divisor_3: float32 (3,), in grey levels.

    Returns:
        float32 (N, 3, crop_size, crop_size): (pixel - mean) * (1 / divisor).
    """
    reciprocal_3 = np.float32(1) / divisor_3
    images_NCHW = np.empty((len(pixels_NHWC), 3, crop_size, crop_size), dtype=np.float32)
    for index, pixels_HWC in enumerate(pixels_NHWC):
        left, top = parameters.crop_x_N[index], parameters.crop_y_N[index]
        crop_HWC = pixels_HWC[top : top + crop_size, left : left + crop_size].astype(np.float32)
        if parameters.mirror_N[index]:
            crop_HWC = crop_HWC[:, ::-1]
        images_NCHW[index] = ((crop_HWC - parameters.mean_N3[index]) * reciprocal_3).transpose(2, 0, 1)
    return images_NCHW
