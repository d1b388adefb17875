"""Crop, mirror, normalise and lay out decoded pictures on a GPU, in one kernel written in Triton.

The float32 operations and their order are those of `reference.py`, without contraction, so the bits are those of the
CPU. Pictures are read where they are: in a decoded batch, or by row number in a cache of the whole dataset. The kernel
runs on the stream of whoever takes the batch, so waiting batches hold bytes, not floats.
"""

import functools
import warnings

import numpy as np
import torch
import triton
import triton.language as tl

from pipeline.online.batch import Layout, OutputType

_BLOCK = 1024  # values of the output that a program makes


class CropKernel:
    """Makes images from pixels with the settings of one graph.

    Args:
        crop_size: Side of the images in pixels.
        divisor_3: Divisor of the mean-free pixels, float32 (3,), in grey levels.
        mean_image_HWC: Mean picture, float32 (H, W, 3), subtracted first; None: none is subtracted.
        output_type: Type of the images.
        layout: Layout of the images in memory.
        device: Device of pixels and images.
    """

    def __init__(
        self,
        crop_size: int,
        divisor_3: np.ndarray,
        mean_image_HWC: np.ndarray | None,
        output_type: OutputType,
        layout: Layout,
        device: torch.device,
    ) -> None:
        self._size, self._dtype, self._channels_last = crop_size, getattr(torch, output_type), layout == "NHWC"
        self._reciprocal_3 = torch.from_numpy(np.float32(1) / divisor_3).to(device)
        self._mean_image_HWC = None if mean_image_HWC is None else torch.from_numpy(mean_image_HWC).to(device)

    def __call__(
        self,
        pixels_MHWC: torch.Tensor,
        rows_N: torch.Tensor | None,
        placement_NK3: torch.Tensor,
        mean_N3: torch.Tensor,
    ) -> torch.Tensor:
        """Make K images of each of N samples.

        Args:
            pixels_MHWC: Decoded pictures, uint8, contiguous.
            rows_N: Picture of each sample, int64; None: the first N in their order.
            placement_NK3: Placements as in `AugmentationParameters.placement_N3`, int32. A crop that does not fit makes
                an image of NaN.
            mean_N3: See `AugmentationParameters.mean_N3`.

        Returns:
            (N, K, 3, crop_size, crop_size), or (N, K, crop_size, crop_size, 3) for the layout NHWC; contiguous.
        """
        (num_samples, num_crops, _), side = placement_NK3.shape, self._size
        shape = (side, side, 3) if self._channels_last else (3, side, side)
        images = torch.empty((num_samples, num_crops, *shape), dtype=self._dtype, device=pixels_MHWC.device)
        grid = num_samples * num_crops, triton.cdiv(3 * side**2, _BLOCK)
        with torch.cuda.device_of(pixels_MHWC):
            _crop[grid](
                images,
                pixels_MHWC,
                rows_N,
                placement_NK3,
                mean_N3,
                self._reciprocal_3,
                self._mean_image_HWC,
                num_crops,
                *pixels_MHWC.shape[1:3],
                SIZE=side,
                CHANNELS_LAST=self._channels_last,
                BLOCK=_BLOCK,
            )
        return images


@functools.cache
def works_on(device_id: int) -> bool:
    """Return whether the kernel can be compiled and run on a GPU; if not, a warning names the cause."""
    device = torch.device("cuda", device_id)
    try:
        kernel = CropKernel(1, np.ones(3, dtype=np.float32), None, "float32", "NCHW", device)
        zeros = {dtype: torch.zeros(1, 1, 3, dtype=dtype, device=device) for dtype in (torch.int32, torch.float32)}
        pixels = torch.full((1, 1, 1, 3), 7, dtype=torch.uint8, device=device)
        return kernel(pixels, None, zeros[torch.int32], zeros[torch.float32][0]).flatten().tolist() == [7.0] * 3
    except Exception as error:  # Triton needs a C compiler and a recent card, and raises what they raise
        message = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"Triton can't be used ({type(error).__name__}: {message}), so DALI normalises: it needs a C compiler such "
            "as gcc, and may not support older GPUs",
            stacklevel=2,
        )
        return False


@triton.jit
def _crop(
    images: tl.tensor,
    pixels: tl.tensor,
    rows: tl.tensor,
    placements: tl.tensor,
    means: tl.tensor,
    reciprocals: tl.tensor,
    mean_image: tl.tensor,
    num_crops: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    SIZE: tl.constexpr,  # fixed at compile time, like what follows, since divisions by it are then multiplications
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    image = tl.program_id(0)
    sample = image // num_crops
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    area: tl.constexpr = SIZE * SIZE
    if CHANNELS_LAST:
        channel, spot = value % 3, value // 3
    else:
        channel, spot = value // area, value % area
    left, top = tl.load(placements + 3 * image), tl.load(placements + 3 * image + 1)
    mirror = tl.load(placements + 3 * image + 2)
    row, column = spot // SIZE, spot % SIZE
    column = tl.where(mirror != 0, SIZE - 1 - column, column)
    fits = (left >= 0) & (top >= 0) & (left + SIZE <= width) & (top + SIZE <= height)
    inside = value < 3 * area
    source = ((top + row) * width + left + column) * 3 + channel
    picture = sample.to(tl.int64)
    if rows is not None:
        picture = tl.load(rows + sample)
    result = tl.load(pixels + picture * height * width * 3 + source, mask=inside & fits).to(tl.float32)
    if mean_image is not None:
        result -= tl.load(mean_image + source, mask=inside & fits)
    result = (result - tl.load(means + 3 * sample + channel, mask=inside)) * tl.load(reciprocals + channel, mask=inside)
    result = tl.where(fits, result, float("nan"))
    tl.store(images + image.to(tl.int64) * 3 * area + value, result.to(images.dtype.element_ty), mask=inside)
