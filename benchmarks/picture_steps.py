"""The unavoidable work on a picture, by direct calls of the fastest libraries that `benchmarks.decoders` found."""

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


def centred_square(height: int, width: int) -> tuple[int, int, int]:
    """Return the top, left and side of the centred square, whose side is the shorter side."""
    short = min(height, width)
    return (height - short) // 2, (width - short) // 2, short


def crop(pixels_HWC: np.ndarray) -> np.ndarray:
    """Return a view of the centred square."""
    top, left, short = centred_square(*pixels_HWC.shape[:2])
    return pixels_HWC[top : top + short, left : left + short]


def crop_and_resize(pixels_HWC: np.ndarray) -> np.ndarray:
    """Resize the centred square to (SIZE, SIZE, 3), bicubic and antialiased, with torch, as in its manual."""
    images_NCHW = torch.from_numpy(crop(pixels_HWC)).permute(2, 0, 1)[None]
    resized_NCHW = functional.interpolate(images_NCHW, (SIZE, SIZE), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized_NCHW[0].permute(1, 2, 0))


def crop_and_resize_fast(pixels_HWC: np.ndarray) -> np.ndarray:
    """Do the same in the offline stage's way: channels last throughout, vertically before horizontally."""
    square_HWC = crop(pixels_HWC)
    images_NCHW = torch.from_numpy(square_HWC).unsqueeze(0).permute(0, 3, 1, 2)
    for shape in ((SIZE, square_HWC.shape[1]), (SIZE, SIZE)):
        images_NCHW = functional.interpolate(images_NCHW, shape, mode="bicubic", antialias=True)
    return np.ascontiguousarray(images_NCHW[0].permute(1, 2, 0))


def encode(pixels_HWC: np.ndarray) -> bytes:
    """Return a JPEG of quality `QUALITY`, its colours at half the resolution."""
    return simplejpeg.encode_jpeg(pixels_HWC, quality=QUALITY, colorsubsampling="420")
