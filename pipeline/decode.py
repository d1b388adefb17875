"""One encoded picture to upright RGB pixels, with an audit: decoded once and to its last pixel, or rejected.

Each oddity of real archives has one rule, and is noted in the manifest:

    cmyk          converted to RGB
    grey          the channel is repeated; of 16 bits the upper 8 are kept
    palette       expanded
    alpha         dropped: the colour channels are kept as stored
    exif_rotated  pixels are turned upright
    png, gif, ..  any format but JPEG, whatever the file's name: decoded like any other

A plain JPEG goes straight to libjpeg-turbo, which takes it without the least warning; whatever it finds odd is Pillow's
to judge. Both decode to the same bits (docs/decisions/0005-libjpeg-turbo-and-torch-make-the-pictures.md).
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

MAX_PIXELS = 178_956_970  # where Pillow itself refuses a decompression bomb: 512 MiB of RGB pixels
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
_JPEG_FORMATS = ("JPEG", "MPO")  # a camera's MPO is a JPEG with further pictures behind it
_START_OF_SCAN, _APP1 = 0xDA, 0xE1


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


@dataclass(frozen=True)
class DecodedPicture:
    """What a picture's bytes hold.

    Attributes:
        pixels_HWC: uint8 RGB, upright, all of the picture.
        is_jpeg: True where the bytes are a JPEG.
        notes: Names of the oddities found.
    """

    pixels_HWC: np.ndarray
    is_jpeg: bool
    notes: tuple[str, ...]


def decode_picture(content: bytes) -> DecodedPicture:
    """Decode and audit one picture.

    Args:
        content: An encoded picture's bytes.

    Raises:
        RejectedPicture: The bytes are not a complete picture.
    """
    if not content:
        raise RejectedPicture("empty", "no bytes")
    return _decode_plain_jpeg(content) or _decode_any(content)


def _decode_plain_jpeg(content: bytes) -> DecodedPicture | None:
    """Decode an upright grey or YCbCr JPEG without a flaw; None where the picture is anything else."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(content, strict=True)
        if color_space not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
            return None
        if _has_exif(content) and _orientation(Image.open(io.BytesIO(content))) != 1:
            return None
        pixels_HWC = simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except (ValueError, IndexError, OSError, SyntaxError):
        return None
    return DecodedPicture(pixels_HWC, True, ("grey",) if color_space == "Gray" else ())


def _has_exif(content: bytes) -> bool:
    """Walk a JPEG's segments up to its first scan; tell whether one of them is EXIF."""
    start = 2  # behind the mark of the file's start
    while content[start] == 0xFF and content[start + 1] != _START_OF_SCAN:
        if content[start + 1] == _APP1 and content[start + 4 : start + 8] == b"Exif":
            return True
        start += 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return False


def _decode_any(content: bytes) -> DecodedPicture:
    notes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF blocks, which we don't need whole
            image: Image.Image = Image.open(io.BytesIO(content))
            if image.width * image.height > MAX_PIXELS:
                raise RejectedPicture("too_large", f"{image.width}x{image.height} pixels")
            file_format = image.format
            image.load()
            orientation = _orientation(image)
    except Image.DecompressionBombError as error:
        raise RejectedPicture("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = "truncated" if "truncated" in str(error) else "undecodable"
        raise RejectedPicture(reason, str(error)) from error
    if file_format not in _JPEG_FORMATS:
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
    return DecodedPicture(np.array(image.convert("RGB")), file_format in _JPEG_FORMATS, tuple(notes))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where the block is absent or broken."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a broken block makes the parser raise, the picture itself is whole
        return 1
    return value if value in range(1, 9) else 1
