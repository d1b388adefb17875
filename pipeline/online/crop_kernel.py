"""Crop, mirror, normalise and lay out a picture on a CPU, in one vectorised pass: what DALI's `numba_function` runs.

DALI's own `crop_mirror_normalize` takes a picture's values one at a time on a CPU, and three times as long
(docs/decisions/0009-the-second-half-on-the-cpu-is-vectorised.md). The float32 operations are the same in the same
order, so the bits are too. Numba compiles where it runs, and keeps the result beside this file or in the user's cache;
what differs from graph to graph is data, so that it compiles once.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray, types

Array = np.ndarray[Any, Any]
# What DALI calls, in C: it gives an array of pointers to a sample's outputs and one to its inputs, and their shapes'.
_VALUES, _SHAPES = types.CPointer(types.CPointer(types.uint8)), types.CPointer(types.CPointer(types.int64))
_RANKS, _COUNT = types.CPointer(types.int32), types.int32
_RUN = types.void(_VALUES, _SHAPES, _RANKS, _COUNT, _VALUES, _SHAPES, _RANKS, _COUNT)
_SET_UP = types.void(_SHAPES, _RANKS, _COUNT, _SHAPES, _RANKS, _COUNT, _COUNT)
_NUM_FIXED = 5  # settings before the placements: see `settings`


def settings(
    divisor_3: Array, channels_last: bool, placements: tuple[tuple[int, int, int], ...], mean_image_HWC: Array | None
) -> Array:
    """Return the kernel's last input: all that is the same for every sample, in one float32 vector.

    Args:
        divisor_3: What mean-free pixels are divided by, float32 (3,): multiplied by its reciprocal.
        channels_last: The output is HWC, else CHW.
        placements: (x, y, mirror), the place in halves of the free range: each picture gives all of these, whatever
            crop and mirror it comes with. Empty: the one that it comes with.
        mean_image_HWC: Subtracted before, cut like the picture, whose shape it has; float32.
    """
    fixed = [channels_last, len(placements), *(np.float32(1) / divisor_3)]
    mean_image = () if mean_image_HWC is None else mean_image_HWC.ravel()
    return np.concatenate([fixed, np.ravel(placements), mean_image]).astype(np.float32)


def _compiled(decorator: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Compile a function, and keep the result where there is a folder for it."""
    try:
        return decorator(cache=True)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written to
        return decorator()(function)


_njit = functools.partial(_compiled, functools.partial(numba.njit, nogil=True, error_model="numpy"))


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
    """Make one image; all arrays are flat, as they lie in memory."""
    last = np.uint64(size - 1)  # an index without a sign can't count from the end: so the loops are vectorised
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
    """Make a sample's output from pixels (uint8 HWC), crop_x, crop_y, mirror, means (3,), and settings.

    If the crop does not fit into the picture, the output is NaN: nothing outside of its memory is read.
    """
    height, width = input_shapes[0][0], input_shapes[0][1]
    pixels = carray(inputs[0], height * width * 3)
    means = carray(inputs[4], 12).view(np.float32)
    shared = carray(inputs[5], 4 * input_shapes[5][0]).view(np.float32)
    channels_last, num_placements, reciprocals = shared[0] != 0, int(shared[1]), shared[2:_NUM_FIXED]
    mean_image = shared[_NUM_FIXED + 3 * num_placements :]
    num_images = max(1, num_placements)
    size = output_shapes[0][ranks[0] - 2]  # HWC or CHW, one side as long as the other
    images = carray(outputs[0], num_images * 12 * size * size).view(np.float32).reshape((num_images, 3 * size * size))
    if size > min(height, width) or len(mean_image) not in (0, 3 * height * width):
        images[:] = np.nan
        return
    for index in range(num_images):
        if num_placements:
            x, y, mirror = shared[_NUM_FIXED + 3 * index : _NUM_FIXED + 3 * index + 3]
            left, top = int(x) * (width - size) // 2, int(y) * (height - size) // 2
        else:
            left = round(carray(inputs[1], 4).view(np.float32)[0] * (width - size))
            top = round(carray(inputs[2], 4).view(np.float32)[0] * (height - size))
            mirror = np.float32(carray(inputs[3], 4).view(np.int32)[0])
        _normalise(
            images[index], size, channels_last, pixels, width, mean_image, left, top, mirror != 0, means, reciprocals
        )


@functools.cache  # DALI has the functions' addresses: they are never collected
def run_function() -> Any:
    """Return what makes a sample's output, compiled: a C function."""
    return _compiled(functools.partial(numba.cfunc, _RUN), _run)


@functools.cache
def set_up_function(*output_shape: int) -> Any:
    """Return what tells DALI the samples' output shape, compiled: a C function."""

    def set_up(output_shapes, _0, _1, _2, _3, _4, num_samples):  # type: ignore[no-untyped-def]
        for sample in range(num_samples):
            for dimension in range(len(output_shape)):
                output_shapes[sample][dimension] = output_shape[dimension]

    return _compiled(functools.partial(numba.cfunc, _SET_UP), set_up)
