"""Ways to decode a JPEG, resize and crop it, and encode it again, each on one thread.

A way maps the bytes of pictures to pairs: the square picture, in a form that `numpy.asarray` converts to uint8 RGB
(SIZE, SIZE, 3), and its new JPEG: quality 95, colours at half the resolution, tables not optimised.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

os.environ["VIPS_CONCURRENCY"] = "1"  # read when the library is loaded

import cv2
import numpy as np
import pyvips
import simplejpeg
import torch
from nvidia.dali import fn, math, pipeline_def, types
from PIL import Image
from torchvision.io import decode_jpeg, encode_jpeg

from benchmarks.picture_steps import (
    QUALITY,
    SIZE,
    centred_square,
    crop,
    crop_and_resize,
    crop_and_resize_fast,
    decode,
    encode,
)

Pair = tuple[Any, bytes]
Way = Callable[[Sequence[bytes]], Iterable[Pair]]
PACKAGES = [
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pyvips",
    "pyvips-binary",
    "simplejpeg",
    "torch",
    "torchvision",
]
_DALI_BATCH_SIZE = 64

torch.set_num_threads(1)
cv2.setNumThreads(0)  # no threads besides this one
pyvips.cache_set_max(0)  # otherwise, a picture seen before costs nothing


def _pillow_resize(image: Image.Image, **options: Any) -> Image.Image:
    top, left, short = centred_square(image.height, image.width)
    box = (left, top, left + short, top + short)
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box, **options)


def _pillow_encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _pillow(content: bytes) -> Pair:
    square = _pillow_resize(Image.open(io.BytesIO(content)).convert("RGB"))
    return square, _pillow_encode(square)


def _pillow_draft(content: bytes) -> Pair:
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (SIZE, SIZE))
    square = _pillow_resize(image.convert("RGB"), reducing_gap=2.0)
    return square, _pillow_encode(square)


def _simplejpeg_pillow(content: bytes) -> Pair:
    square_HWC = np.asarray(_pillow_resize(Image.fromarray(decode(content))))
    return square_HWC, encode(square_HWC)


def _simplejpeg_torch(content: bytes) -> Pair:
    square_HWC = crop_and_resize(decode(content))
    return square_HWC, encode(square_HWC)


def _simplejpeg_torch_fast(content: bytes) -> Pair:
    square_HWC = crop_and_resize_fast(decode(content))
    return square_HWC, encode(square_HWC)


def _simplejpeg_scaled_torch(content: bytes) -> Pair:
    # Decode to the smallest of libjpeg's sizes (n/8 of the full one) that is at least as large as the result.
    square_HWC = crop_and_resize_fast(simplejpeg.decode_jpeg(content, min_height=SIZE, min_width=SIZE))
    return square_HWC, encode(square_HWC)


def _opencv(content: bytes) -> Pair:
    pixels_HWC = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_BGR)
    if pixels_HWC is None:
        raise ValueError("undecodable")
    square_HWC = cv2.resize(crop(pixels_HWC), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    encoded = cv2.imencode(".jpg", square_HWC, [cv2.IMWRITE_JPEG_QUALITY, QUALITY, *sampling])[1]
    return square_HWC[..., ::-1], encoded.tobytes()


def _pyvips(content: bytes) -> Pair:
    # A truncated file still passes, because the loader that shrinks while reading ignores fail_on.
    square = pyvips.Image.thumbnail_buffer(content, SIZE, height=SIZE, crop="centre", fail_on="truncated")
    return square, square.jpegsave_buffer(Q=QUALITY, subsample_mode="on")


def _torchvision(content: bytes) -> Pair:
    pixels_CHW = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    square_HWC = torch.from_numpy(crop_and_resize_fast(pixels_CHW.permute(1, 2, 0).numpy()))
    return square_HWC, encode_jpeg(square_HWC.permute(2, 0, 1), QUALITY).numpy().tobytes()


@pipeline_def(batch_size=_DALI_BATCH_SIZE, num_threads=1, device_id=None)
def _dali_graph(batches: Iterator[list[np.ndarray]]) -> Any:
    encoded = fn.external_source(batches, dtype=types.UINT8, ndim=1)
    pictures = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
    height_width = fn.cast(fn.peek_image_shape(encoded), dtype=types.FLOAT)[0:2]
    short = fn.reductions.min(height_width)
    margins = math.floor((height_width - short) / 2)
    return fn.resize(
        pictures,
        size=(SIZE, SIZE),
        roi_start=margins,
        roi_end=margins + short,
        interp_type=types.INTERP_CUBIC,
        antialias=True,
    )


def _dali(contents: Sequence[bytes]) -> Iterator[Pair]:
    files = [np.frombuffer(content, np.uint8) for content in contents]
    graph = _dali_graph(files[start : start + _DALI_BATCH_SIZE] for start in range(0, len(files), _DALI_BATCH_SIZE))
    graph.build()
    with suppress(StopIteration):  # after the last batch
        while True:
            (squares,) = graph.run()
            for index in range(len(squares)):
                square_HWC = np.array(squares.at(index))  # a copy: the graph's next run overwrites it
                yield square_HWC, encode(square_HWC)


WAYS: dict[str, Way] = {
    "Pillow": partial(map, _pillow),
    "Pillow, draft and reducing_gap": partial(map, _pillow_draft),
    "simplejpeg, Pillow's resize": partial(map, _simplejpeg_pillow),
    "simplejpeg, torch's resize": partial(map, _simplejpeg_torch),
    "simplejpeg, torch's resize, channels last, rows first": partial(map, _simplejpeg_torch_fast),
    "simplejpeg scaled, the same resize": partial(map, _simplejpeg_scaled_torch),
    "OpenCV, INTER_AREA": partial(map, _opencv),
    "pyvips": partial(map, _pyvips),
    "torchvision, the same resize": partial(map, _torchvision),
    "DALI, simplejpeg's encoder": _dali,
}
EXACT = "Pillow"  # reference for the others: bicubic, in fixed point, from the full resolution
