"""One picture: decoded once, audited, brought to its stored form.

Each oddity of real archives has one rule, and is noted in the manifest:

    cmyk          converted to RGB
    grey          the channel is repeated; of 16 bits the upper 8 are kept
    palette       expanded
    alpha         dropped: the colour channels are kept as stored
    exif_rotated  pixels are turned upright
    png, gif, ..  any format but JPEG, whatever the file's name: decoded like any other

A picture that can't be decoded to its last pixel is rejected, with a reason.
"""

import importlib.metadata
import io
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import ExifTags, Image, ImageOps, features

Encoding = Literal["jpeg", "raw", "original"]
ENCODINGS = get_args(Encoding)
_MEMBER = {"jpeg": "jpg", "original": "jpg", "raw": "npy"}
_MAX_PIXELS = 178_956_970  # where Pillow itself refuses a decompression bomb: 512 MiB of RGB pixels
_MODE_NOTES = {  # Pillow's pixel modes that can be brought to RGB by one of the rules above
    "RGB": "",
    "YCbCr": "",
    "CMYK": "cmyk",
    "1": "grey",
    "L": "grey",
    "I;16": "grey",
    "I;16B": "grey",
    "P": "palette",
    "RGBA": "alpha",
    "LA": "alpha",
    "PA": "alpha",
}
_REENCODE = {"cmyk", "exif_rotated", "alpha", "palette"}


class RejectedPicture(Exception):
    """A picture that can't enter the dataset.

    Attributes:
        reason: One of `empty`, `undecodable`, `truncated`, `too_large`.
        detail: The decoder's own words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Take the reason and the decoder's words."""
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """The stored form of pictures.

    Attributes:
        encoding: `jpeg`, `raw` (uint8 pixels as npy), or `original` (bytes untouched unless their format is odd).
        size: The centred square of the shorter side is resized to size x size pixels; None keeps the native size
            (sources of stored pixels only).
        quality: Of JPEGs that we encode, 1 to 95.
    """

    encoding: Encoding
    size: int | None
    quality: int = 95

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: Names the field, its value and what would be right.
        """
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding is {self.encoding!r}; known: {', '.join(ENCODINGS)}")
        if self.size is not None and not 1 <= self.size <= 4096:
            raise ValueError(f"size is {self.size}; it must be 1 to 4096 pixels")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is {self.quality}; it must be 1 to 95")

    @property
    def member(self) -> str:
        """The extension of the picture's member in a shard."""
        return _MEMBER[self.encoding]

    @property
    def resize_rule(self) -> str:
        """What happens to a picture before its pixels are counted, in words."""
        if self.size is None:
            return "native size"
        return f"centred square of the shorter side, resized to {self.size}x{self.size} (bicubic, antialiased)"

    def document(self) -> dict[str, Any]:
        """Return what `dataset.json` says about the encoding, with the versions of the libraries that did it."""
        return {
            "name": self.encoding,
            "member": self.member,
            "size": self.size,
            "quality": self.quality,
            "resize_rule": self.resize_rule,
            "pillow": features.version("pil"),
            "libjpeg_turbo": features.version("libjpeg_turbo"),
            "pyarrow": importlib.metadata.version("pyarrow"),  # which writes the manifests
        }


@dataclass(frozen=True)
class StoredPicture:
    """A picture ready to be written.

    Attributes:
        data: The member's bytes.
        width: Of the stored picture, in pixels.
        height: Likewise.
        pixels_HWC: uint8 RGB after the resize rule, before encoding: what statistics count.
        notes: Names of the oddities found.
    """

    data: bytes
    width: int
    height: int
    pixels_HWC: np.ndarray
    notes: tuple[str, ...]


def store_picture(content: bytes | np.ndarray, config: EncodingConfig) -> StoredPicture:
    """Decode, audit and encode one picture.

    Args:
        content: An encoded picture's bytes, or uint8 pixels (H, W, 3).
        config: The stored form.

    Raises:
        RejectedPicture: The bytes are no whole picture.
    """
    image, file_format, notes = _decode(content)
    squared = image if config.size is None else _centre_square(image, config.size)
    pixels_HWC = np.asarray(squared)
    if config.encoding == "raw":
        buffer = io.BytesIO()
        np.save(buffer, pixels_HWC)
        return StoredPicture(buffer.getvalue(), *squared.size, pixels_HWC, notes)
    if config.encoding == "jpeg":
        return StoredPicture(_encode_jpeg(squared, config.quality), *squared.size, pixels_HWC, notes)
    untouched = isinstance(content, bytes) and file_format == "JPEG" and not _REENCODE & set(notes)
    data = content if untouched and isinstance(content, bytes) else _encode_jpeg(image, config.quality)
    return StoredPicture(data, *image.size, pixels_HWC, notes)


def _decode(content: bytes | np.ndarray) -> tuple[Image.Image, str | None, tuple[str, ...]]:
    """Return an upright RGB image, the file format, and the notes."""
    if isinstance(content, np.ndarray):
        return Image.fromarray(content), None, ()
    if not content:
        raise RejectedPicture("empty", "no bytes")
    notes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF blocks, which we don't need whole
            image: Image.Image = Image.open(io.BytesIO(content))
            if image.width * image.height > _MAX_PIXELS:
                raise RejectedPicture("too_large", f"{image.width}x{image.height} pixels")
            file_format = image.format
            image.load()
            orientation = _orientation(image)
    except Image.DecompressionBombError as error:
        raise RejectedPicture("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = "truncated" if "truncated" in str(error) else "undecodable"
        raise RejectedPicture(reason, str(error)) from error
    if file_format != "JPEG":
        notes.append(str(file_format).lower())
    if image.mode not in _MODE_NOTES:
        raise RejectedPicture("undecodable", f"pixels of mode {image.mode}")
    if _MODE_NOTES[image.mode]:
        notes.append(_MODE_NOTES[image.mode])
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if orientation != 1:
        notes.append("exif_rotated")
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB"), file_format, tuple(notes)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where the block is absent or broken."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a broken block makes the parser raise, the picture itself is whole
        return 1
    return value if value in range(1, 9) else 1


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))


def _encode_jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
