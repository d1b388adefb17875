"""The inevitable work on a picture, by the fastest libraries that `benchmarks.decoders` found."""

import numpy as np
import simplejpeg
import torch
from torch.nn import functional

SIZE = 256  # side of the stored pictures
QUALITY = 95


def decode(content: bytes) -> np.ndarray:
    """Return a JPEG's pixels, uint8 (H, W, 3).

    Raises:
        ValueError: The file is truncated or damaged.
    """
    return simplejpeg.decode_jpeg(content)


def resize_and_crop(pixels_HWC: np.ndarray) -> np.ndarray:
    """Bring the shorter side to `SIZE` (bicubic, antialiased) and cut out the centre: uint8 (SIZE, SIZE, 3)."""
    shape = scaled_shape(*pixels_HWC.shape[:2])
    images_NCHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]  # channels last, which torch keeps
    resized_NCHW = functional.interpolate(images_NCHW, shape, mode="bicubic", antialias=True)
    return np.ascontiguousarray(centre(resized_NCHW[0].permute(1, 2, 0).numpy()))


def encode(pixels_HWC: np.ndarray) -> bytes:
    """Return a JPEG of quality `QUALITY`, its colours at half the resolution."""
    return simplejpeg.encode_jpeg(pixels_HWC, quality=QUALITY, colorsubsampling="420")


def scaled_shape(height: int, width: int) -> tuple[int, int]:
    """Return height and width after the shorter side became `SIZE`."""
    short = min(height, width)
    return SIZE * height // short, SIZE * width // short


def centre(pixels_HWC: np.ndarray) -> np.ndarray:
    """Return a view of the centre, (SIZE, SIZE, 3)."""
    top, left = (pixels_HWC.shape[0] - SIZE) // 2, (pixels_HWC.shape[1] - SIZE) // 2
    return pixels_HWC[top : top + SIZE, left : left + SIZE]
