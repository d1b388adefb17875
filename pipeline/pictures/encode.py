"""Conversion of a picture to its stored form.

    bytes -> decode and audit -> centre square -> resize to SIZE x SIZE -> encode
             decode.py           (whole: --crop none)  (statistics count these pixels)
                                 (skipped: --crop squash)

The resize is bicubic and antialiased, in integers, so every processor gives the same bits. `original` stores no resized
pictures, so its statistics count sampled points of the stored pictures, which takes a quarter of the time
(docs/decisions/0005-libjpeg-turbo-and-torch-make-the-pictures.md).
"""

import functools
import importlib.metadata
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import simplejpeg

from pipeline.pictures.decode import DAMAGED, MAX_PIXELS, Damaged, RejectedPicture, decode_picture

Encoding = Literal["jpeg", "raw", "original"]
Crop = Literal["centre", "none", "squash"]
ENCODINGS, CROPS = get_args(Encoding), get_args(Crop)
_MEMBER = {"jpeg": "jpg", "original": "jpg", "raw": "npy"}
# Libraries that decode, resize, encode, sample for the statistics, and write the manifests.
_LIBRARIES = ("simplejpeg", "pillow", "torch", "opencv-python-headless", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """The stored form of pictures.

    Attributes:
        encoding: `jpeg`, `raw` (uint8 pixels as npy), or `original` (bytes untouched unless they are odd).
        size: Length of the shorter side after resizing, in pixels, or of both sides with `squash`; None keeps the
            native size (only for sources of stored pixels).
        crop: `centre`: store the centre square; `none`: store the whole picture (`jpeg` only); `squash`: squeeze the
            whole picture into a square, whatever its shape, like Caffe's ImageNet scripts (`convert -resize 256x256!`).
        quality: Quality of the JPEGs that are encoded here, 1 to 95.
        damaged: `reject`: reject pictures that lack pixels; `note`: store what a decoder makes of them.
    """

    encoding: Encoding
    size: int | None
    crop: Crop = "centre"
    quality: int = 95
    damaged: Damaged = "reject"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: A field is invalid; the message names it, its value and what would be right.
        """
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding is {self.encoding!r}; known: {', '.join(ENCODINGS)}")
        if self.size is not None and not 1 <= self.size <= 4096:
            raise ValueError(f"size is {self.size}; it must be 1 to 4096 pixels")
        if self.crop not in CROPS:
            raise ValueError(f"crop is {self.crop!r}; known: {', '.join(CROPS)}")
        if self.crop == "none" and (self.encoding != "jpeg" or self.size is None):
            raise ValueError("crop is 'none', which is for resized jpeg; raw pixels are squares, originals never cut")
        if self.crop == "squash" and (self.encoding == "original" or self.size is None):
            raise ValueError("crop is 'squash', which is for jpeg and raw with a size; originals keep their shape")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is {self.quality}; it must be 1 to 95")
        if self.damaged not in DAMAGED:
            raise ValueError(f"damaged is {self.damaged!r}; known: {', '.join(DAMAGED)}")

    @property
    def member(self) -> str:
        """Extension of the picture's member in a shard."""
        return _MEMBER[self.encoding]

    @property
    def resize_rule(self) -> str:
        """Description of what is done to a picture before its pixels are counted."""
        if self.size is None:
            return "native size"
        if self.encoding == "original":
            return (
                f"{self.size}x{self.size} points of the centred square, evenly spaced; from twice that size on, the "
                "means of boxes of whole pixels"
            )
        if self.crop == "squash":
            return f"resized to {self.size}x{self.size}, whatever its shape (bicubic, antialiased)"
        return f"centred square of the shorter side, resized to {self.size}x{self.size} (bicubic, antialiased)"

    @property
    def modules(self) -> tuple[str, ...]:
        """Slow imports that are delayed until the first picture."""
        return () if self.size is None or self.encoding == "original" else ("torch",)

    def document(self) -> dict[str, Any]:
        """Return the encoding's entry in `dataset.json`, with the versions of the libraries used."""
        # Without the part after a plus sign: a build for another GPU computes the same pictures.
        versions = {name: importlib.metadata.version(name).partition("+")[0] for name in _LIBRARIES}
        return {
            "name": self.encoding,
            "member": self.member,
            "size": self.size,
            "crop": self.crop,
            "quality": self.quality,
            "damaged": self.damaged,
            "resize_rule": self.resize_rule,
            **versions,
        }


@dataclass(frozen=True)
class StoredPicture:
    """A picture ready to be written.

    Attributes:
        data: Bytes of the member.
        width: Width of the stored picture, in pixels.
        height: Height of the stored picture, in pixels.
        source_width: Width of the upright source picture, in pixels.
        source_height: Height of the upright source picture, in pixels.
        notes: Names of the oddities found.
    """

    data: bytes
    width: int
    height: int
    source_width: int
    source_height: int
    notes: tuple[str, ...]
    _square: Callable[[], np.ndarray]

    @property
    def pixels_HWC(self) -> np.ndarray:
        """Pixels that statistics count, uint8 RGB: after the resize rule, before encoding; computed on demand."""
        return self._square()


def store_picture(content: bytes | np.ndarray, config: EncodingConfig) -> StoredPicture:
    """Decode, audit and encode one picture.

    Args:
        content: Bytes of an encoded picture, or uint8 pixels (H, W, 3).
        config: Form in which pictures are stored.

    Raises:
        RejectedPicture: The bytes are not a complete picture.
    """
    notes: tuple[str, ...]
    if isinstance(content, np.ndarray):
        whole_HWC, notes, kept = np.require(content, requirements=["C", "W"]), (), None
    else:
        decoded = decode_picture(content, config.damaged)
        whole_HWC, notes, kept = decoded.pixels_HWC, decoded.notes, decoded.jpeg
    size = config.size

    @functools.cache
    def square() -> np.ndarray:
        if size is None:
            return whole_HWC
        if config.encoding == "original":
            return _points(_centre_square(whole_HWC), size)
        if config.crop == "squash":
            return _resize(whole_HWC, size, size)
        return _resize_shorter_side(_centre_square(whole_HWC), size)

    if config.encoding == "raw":
        stored_HWC = square()
        data = _npy(stored_HWC)
    elif config.encoding == "jpeg":
        uncropped = config.crop == "none"
        stored_HWC = _resize_shorter_side(whole_HWC, size) if size is not None and uncropped else square()
        data = _jpeg(stored_HWC, config.quality)
    else:
        stored_HWC = whole_HWC
        data = kept or _jpeg(whole_HWC, config.quality)
    height, width = stored_HWC.shape[:2]
    return StoredPicture(data, width, height, whole_HWC.shape[1], whole_HWC.shape[0], notes, square)


def _resize_shorter_side(pixels_HWC: np.ndarray, size: int) -> np.ndarray:
    """Return the picture resized so that its shorter side has `size` pixels."""
    height, width = pixels_HWC.shape[:2]
    short = min(height, width)
    return _resize(pixels_HWC, round(height * size / short), round(width * size / short))


def _resize(pixels_HWC: np.ndarray, new_height: int, new_width: int) -> np.ndarray:
    """Return the resized picture, uint8 (new_height, new_width, 3), contiguous."""
    height, width = pixels_HWC.shape[:2]
    if (height, width) == (new_height, new_width):
        return np.ascontiguousarray(pixels_HWC)
    widest = max(width, new_width)  # largest width between and after the two passes
    if new_height * widest > MAX_PIXELS:
        raise RejectedPicture("too_large", f"{width}x{height} pixels would become {widest}x{new_height}")
    import torch  # imported here: it takes seconds, and sources of stored pixels do not need it
    from torch.nn.functional import interpolate

    # Unsqueezed before it is permuted: this way torch sees that the channels are last, and keeps them there.
    picture_1CHW = torch.from_numpy(pixels_HWC).unsqueeze(0).permute(0, 3, 1, 2)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the processes already share the cores
    try:
        # Vertically first, so that the slower, horizontal pass has fewer rows.
        for shape in ((new_height, width), (new_height, new_width)):
            picture_1CHW = interpolate(picture_1CHW, shape, mode="bicubic", antialias=True)
    finally:
        torch.set_num_threads(num_threads)
    return np.ascontiguousarray(picture_1CHW[0].permute(1, 2, 0))


def _points(square_HWC: np.ndarray, size: int) -> np.ndarray:
    """Return evenly spaced points of a square picture, contiguous (size, size, 3): pixels, or means of k x k pixels.

    The boxes are the largest that still give `size` or more means per row. A resize to that size would average over
    less than twice their width.
    """
    box = max(1, len(square_HWC) // size)
    if box > 1:
        num_boxes = len(square_HWC) // box
        covered_HWC = square_HWC[: num_boxes * box, : num_boxes * box]
        square_HWC = cv2.resize(covered_HWC, (num_boxes, num_boxes), interpolation=cv2.INTER_AREA)
    return cv2.resize(square_HWC, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def _centre_square(pixels_HWC: np.ndarray) -> np.ndarray:
    """Return a view of the centred square of the shorter side."""
    height, width = pixels_HWC.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return pixels_HWC[top : top + short, left : left + short]


def _npy(pixels_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels_HWC)
    return buffer.getvalue()


def _jpeg(pixels_HWC: np.ndarray, quality: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HWC), quality, "RGB", "420"))
