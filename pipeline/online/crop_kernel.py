"""Crop, mirror, normalise and lay out a picture on a CPU in one vectorised pass, called by DALI's `numba_function`.

On a CPU, DALI's own `crop_mirror_normalize` processes one value at a time and takes three times as long
(docs/decisions/0009-the-second-half-on-the-cpu-is-vectorised.md). The float32 operations and their order are the same,
so the bits are the same. Numba compiles for the processor at hand, and keeps the result beside this file or in the
user's cache. Whatever differs between graphs is passed as data, so the functions are compiled only once.
"""

import functools
from typing import Any

import numba
import numpy as np
from numba import carray, types

from pipeline.online.compiled import compiled

Array = np.ndarray[Any, Any]
# Signatures of the C functions that DALI calls, with arrays of pointers to the outputs and inputs of a sample, and of
# pointers to their shapes.
_VALUES, _SHAPES = types.CPointer(types.CPointer(types.uint8)), types.CPointer(types.CPointer(types.int64))
_RANKS, _COUNT = types.CPointer(types.int32), types.int32
_RUN = types.void(_VALUES, _SHAPES, _RANKS, _COUNT, _VALUES, _SHAPES, _RANKS, _COUNT)
_SET_UP = types.void(_SHAPES, _RANKS, _COUNT, _SHAPES, _RANKS, _COUNT, _COUNT)
NO_MEAN_IMAGE = np.zeros(1, dtype=np.float32)  # if none is subtracted: DALI has no empty constants

_njit = functools.partial(compiled, functools.partial(numba.njit, nogil=True, error_model="numpy"))


@_njit
def _normalise(
    image: Array,
    size: int,
    channels_last: bool,
    pixels: Array,
    pixels_W: int,
    mean_image: Array,
    left: int,
    top: int,
    mirror: bool,
    means: Array,
    reciprocals: Array,
) -> None:
    """Make one image; all arrays are flat, as in memory."""
    last = np.uint64(size - 1)  # an unsigned index can't count from the end, so the loops are vectorised
    differences = np.empty(3 * size, dtype=np.float32)
    mirrored, planar = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.float32)
    for row in range(size):
        first = 3 * (pixels_W * (top + row) + left)
        line = pixels[first : first + 3 * size]
        if len(mean_image):
            subtrahends = mean_image[first : first + 3 * size]
            for place in range(3 * size):
                differences[place] = np.float32(line[place]) - subtrahends[place]
        for channel in range(3):
            mean, reciprocal = means[channel], reciprocals[channel]
            start = size * (size * channel + row)
            target = planar if channels_last else image[start : start + size]
            values = mirrored if mirror else target
            if len(mean_image):
                for column in range(size):
                    values[column] = (differences[3 * column + channel] - mean) * reciprocal
            else:
                for column in range(size):
                    values[column] = (np.float32(line[3 * column + channel]) - mean) * reciprocal
            if mirror:
                for column in range(size):
                    target[column] = mirrored[last - np.uint64(column)]
            if channels_last:
                pixels_there = image[3 * size * row : 3 * size * (row + 1)]
                for column in range(size):
                    pixels_there[3 * column + channel] = planar[column]


def _run(outputs, output_shapes, ranks, _0, inputs, input_shapes, _1, _2):  # type: ignore[no-untyped-def]
    """Make the output of a sample: one image for each of its placements.

    Inputs: pixels, uint8 (H, W, 3); placements, int32 (3 K,): left, top and mirror of each image, in pixels; means and
    reciprocals of the divisors, float32 (3,); the mean image, float32 (3 H W,), or `NO_MEAN_IMAGE`; 1 if the output is
    HWC, int32. If a crop does not fit into the picture, the output is NaN: memory outside the picture is never read.
    """
    height, width = input_shapes[0][0], input_shapes[0][1]
    pixels = carray(inputs[0], height * width * 3)
    num_images = input_shapes[1][0] // 3
    placements = carray(inputs[1], 12 * num_images).view(np.int32).reshape((num_images, 3))
    means, reciprocals = carray(inputs[2], 12).view(np.float32), carray(inputs[3], 12).view(np.float32)
    mean_image = carray(inputs[4], 4 * input_shapes[4][0]).view(np.float32)[input_shapes[4][0] == 1 :]
    channels_last = carray(inputs[5], 4).view(np.int32)[0] != 0
    size = output_shapes[0][ranks[0] - 2]  # HWC or CHW; the image is a square
    images = carray(outputs[0], num_images * 12 * size * size).view(np.float32).reshape((num_images, 3 * size * size))
    for index in range(num_images):
        left, top, mirror = placements[index]
        fits = 0 <= left <= width - size and 0 <= top <= height - size
        if not fits or len(mean_image) not in (0, 3 * height * width):
            images[index] = np.nan
            continue
        _normalise(
            images[index], size, channels_last, pixels, width, mean_image, left, top, mirror != 0, means, reciprocals
        )


@functools.cache  # DALI holds only the addresses of the functions, so they must live for ever
def run_function() -> Any:
    """Return the compiled C function that makes the output of a sample."""
    return compiled(functools.partial(numba.cfunc, _RUN), _run)


@functools.cache
def set_up_function(*output_shape: int) -> Any:
    """Return the compiled C function that tells DALI the shape of the samples' outputs."""

    def set_up(output_shapes, _0, _1, _2, _3, _4, num_samples):  # type: ignore[no-untyped-def]
        for sample in range(num_samples):
            for dimension in range(len(output_shape)):
                output_shapes[sample][dimension] = output_shape[dimension]

    return compiled(functools.partial(numba.cfunc, _SET_UP), set_up)
