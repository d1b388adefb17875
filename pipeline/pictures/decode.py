"""Decode and audit one encoded picture: upright RGB pixels, decoded once and to the last pixel, or a rejection.

Each oddity of real archives has one rule, and is noted in the manifest, in this order:

    png, gif, ..      a format other than JPEG, whatever the file's name: decoded like any other
    one_of_several    several pictures in one file: the first frame or page, or the largest picture of an icon, is taken
    extraneous_bytes  a JPEG with all pixels, but with bytes that belong to nothing: they are dropped
    odd_header        a JPEG with all pixels, but with a header value that libjpeg warns of: libjpeg's value is used
    no_end_mark       all pixels are present, but the end mark is missing
    surplus_data      data remain after a JPEG's last block, and nothing suggests that damage has shifted the blocks:
                      they are dropped
    damaged           pixels are missing or wrong; only if damaged pictures are kept
    unchecked         a JPEG that the strict decoder can't read: decoded by Pillow, which would not notice damage
    sixteen_bit       the upper 8 bits are kept
    cmyk              converted to RGB
    grey              the channel is repeated
    palette           expanded
    alpha             dropped: the colour channels are kept as stored
    exif_rotated      pixels were turned or mirrored, as an EXIF block or XMP packet says

JPEGs are decoded by libjpeg-turbo; every warning counts. A JPEG with a warning is judged by trial: if it decodes
without a warning once the odd bytes are removed, all pixels are present. Otherwise it is damaged, and rejected unless
the caller keeps damaged pictures. Two kinds of damage of which no decoder warns are checked for separately: a
progressive JPEG that ends between two scans, and zeros in place of data. All other formats are decoded by Pillow, and
the format's own checksum is verified if it has one (PNG, deflated TIFF). Some damage can't be detected: a few changed
bytes in a JPEG that leave the number of blocks right, and changed bytes in a format without a checksum (WebP, AVIF,
JPEG 2000, BMP, uncompressed TIFF); a missing end is detected there, too. Both decoders give the same bits for a JPEG
(docs/decisions/0005-libjpeg-turbo-and-torch-make-the-pictures.md).
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from pipeline.pictures.jpeg_markers import (
    END_MARK,
    SOI,
    Segment,
    has_end_mark,
    lacks_data,
    lacks_scans,
    may_be_turned,
    may_hold_several,
    mended,
    orientation_part,
    read_segments,
    unsupported_process,
)
from pipeline.pictures.picture_checks import damage_of_png, damage_of_tiff, gif_has_end_mark

Damaged = Literal["reject", "note"]
DAMAGED = get_args(Damaged)
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 512 MiB of RGB pixels
_MODE_NOTES = {  # Pillow's pixel modes that one of the rules above converts to RGB -> note
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
_TURNS = {  # EXIF orientations, except 1, which is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OUTSIDE_FORMATS = ("EPS", "WMF")  # drawn by Ghostscript or Windows, if present: pixels would depend on the machine
_CMYK_SPACES = ("CMYK", "YCCK")
_ADDRESS = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")  # a Python object's address, different in each process
_SURPLUS = re.compile("([0-9]+) extraneous bytes before marker 0xd9")
_MAX_DETAIL = 200  # characters


class RejectedPicture(Exception):
    """A picture that can't enter the dataset.

    Attributes:
        reason: One of `empty`, `undecodable`, `truncated`, `damaged`, `too_large`.
        detail: Message of the decoder in one line, without parts that differ between processes.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Take the reason and the decoder's message."""
        words = " ".join(_ADDRESS.sub("", detail).encode("utf-8", "backslashreplace").decode().split())
        self.reason = reason
        self.detail = words if len(words) <= _MAX_DETAIL else words[: _MAX_DETAIL - 3] + "..."
        super().__init__(f"{self.reason}: {self.detail}")


@dataclass(frozen=True)
class DecodedPicture:
    """A decoded picture.

    Attributes:
        pixels_HWC: Upright pixels of the whole picture, uint8 RGB.
        jpeg: Upright, flawless JPEG of exactly these pixels: the original bytes, mended if needed; None if there is
            no such JPEG.
        notes: Names of the oddities found.
    """

    pixels_HWC: np.ndarray
    jpeg: bytes | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Jpeg:
    """A decoded JPEG: its bytes (mended if needed), its pixels as stored, and its oddities."""

    content: bytes
    pixels_HWC: np.ndarray
    color_space: str
    notes: tuple[str, ...] = ()


def decode_picture(content: bytes, damaged: Damaged = "reject") -> DecodedPicture:
    """Decode and audit one picture.

    Args:
        content: Bytes of an encoded picture.
        damaged: `reject`: reject damaged pictures; `note`: keep what a decoder makes of them, with a note.

    Raises:
        RejectedPicture: The bytes are not a complete picture.
    """
    if not content:
        raise RejectedPicture("empty", "no bytes")
    return (_decode_jpeg if content.startswith(SOI) else _decode_other)(content, damaged)


def _decode_jpeg(content: bytes, damaged: Damaged) -> DecodedPicture:
    segments = read_segments(content)
    try:
        jpeg = _read_jpeg(content)
    except ValueError as error:
        odd = _odd_jpeg(content, segments, str(error), damaged)
        if odd is None:
            return _unchecked_jpeg(content, segments, str(error), damaged)
        jpeg = odd
    if jpeg.content is not content:
        segments = read_segments(jpeg.content)
    notes = [*jpeg.notes]
    words = "" if "damaged" in notes else _silent_damage(jpeg.content, segments)
    if words and damaged == "reject":
        raise RejectedPicture("truncated" if "no_end_mark" in notes else "damaged", words)
    if words:
        notes = ["damaged"]
    pixels_HWC = jpeg.pixels_HWC
    if may_hold_several(jpeg.content, segments) and _jpeg_holds_several(jpeg.content):
        notes.insert(0, "one_of_several")
    if jpeg.color_space in _CMYK_SPACES:
        notes.append("cmyk")
        # CMYK JPEGs are stored inverted: Adobe's convention, which everybody follows.
        pixels_HWC = np.array(Image.fromarray(255 - pixels_HWC, "CMYK").convert("RGB"))
    elif jpeg.color_space == "Gray":
        notes.append("grey")
    turnable = may_be_turned(jpeg.content, segments)
    orientation = _jpeg_orientation(orientation_part(jpeg.content, segments)) if turnable else 1
    if orientation in _TURNS:
        notes.append("exif_rotated")
        pixels_HWC = _turned(pixels_HWC, orientation)
    keep = {"damaged", "cmyk", "exif_rotated"}.isdisjoint(notes)
    return DecodedPicture(pixels_HWC, jpeg.content if keep else None, tuple(notes))


def _read_jpeg(content: bytes, strict: bool = True) -> _Jpeg:
    """Decode a JPEG.

    Raises:
        ValueError: The decoder's first error, or in strict mode its first warning.
    """
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(content, strict=strict)
    except KeyError as error:  # simplejpeg, if not strict, has no name for this subsampling or colour space
        raise ValueError("unknown subsampling or colour space") from error
    if int(height) * int(width) > MAX_PIXELS:
        raise RejectedPicture("too_large", f"{width}x{height} pixels")
    target = "CMYK" if color_space in _CMYK_SPACES else "RGB"
    return _Jpeg(content, simplejpeg.decode_jpeg(content, target, strict=strict), str(color_space))


def _odd_jpeg(content: bytes, segments: list[Segment], words: str, damaged: Damaged) -> _Jpeg | None:
    """Judge a JPEG that the strict decoder complained about; return None if that decoder can't read it at all.

    Raises:
        RejectedPicture: Pixels are missing or wrong.
    """
    forms = list(mended(content, segments))
    for form, notes in forms:
        with contextlib.suppress(ValueError):
            jpeg = _read_jpeg(form)
            return _Jpeg(form, jpeg.pixels_HWC, jpeg.color_space, notes)
    for form, notes in forms[:1]:
        with contextlib.suppress(ValueError):
            return _without_surplus(form, notes)
        with contextlib.suppress(ValueError):
            jpeg = _read_jpeg(form, strict=False)
            if damaged == "reject":
                raise RejectedPicture("truncated" if "no_end_mark" in notes else "damaged", words)
            return _Jpeg(form, jpeg.pixels_HWC, jpeg.color_space, ("damaged",))
    return None


def _without_surplus(content: bytes, notes: tuple[str, ...]) -> _Jpeg:
    """Decode a JPEG without the data that remain between its last block and its end mark.

    These bytes belong to something else (one of ImageNet's training pictures has 1,483 of them, apache/mxnet#1522), or
    earlier damage has shifted the blocks. The unused bits of the last byte tell which: encoders set them (T.81,
    F.1.2.3), whereas a shifted stream ends at any bit. This finds most such damage: nine cases of ten in tests.

    Raises:
        ValueError: The JPEG has other oddities as well, or the picture is damaged.
    """
    try:
        return _read_jpeg(content)
    except ValueError as error:
        surplus = _SURPLUS.search(str(error))
        if surplus is None or int(surplus[1]) > len(content) // 2:
            raise
    data = content[: -len(END_MARK) - int(surplus[1])]
    jpeg = _read_jpeg(data + END_MARK)
    with contextlib.suppress(ValueError):
        while True:  # a few bytes that the decoder had read ahead
            jpeg = _read_jpeg(data[:-1] + END_MARK)
            data = data[:-1]
    for bit in range(8):
        changed = bytes([data[-1] ^ 1 << bit]).replace(b"\xff", b"\xff\0")
        try:
            same = np.array_equal(_read_jpeg(data[:-1] + changed + END_MARK).pixels_HWC, jpeg.pixels_HWC)
        except ValueError:
            break
        if not same:
            break
        if not data[-1] >> bit & 1:
            raise ValueError("the last byte of its data is not filled up with set bits")
    return _Jpeg(data + END_MARK, jpeg.pixels_HWC, jpeg.color_space, (*notes, "surplus_data"))


def _unchecked_jpeg(content: bytes, segments: list[Segment], words: str, damaged: Damaged) -> DecodedPicture:
    """Decode a JPEG of a kind that the strict decoder does not know, for example with a rare chroma subsampling."""
    process = unsupported_process(content, segments)
    if process:
        raise RejectedPicture("undecodable", f"{process} is not supported ({words})")
    try:
        picture = _decode_other(content, "reject")
    except RejectedPicture as rejected:
        if rejected.reason == "too_large":
            raise
        reason = "undecodable" if has_end_mark(content, segments) else "truncated"
        raise RejectedPicture(reason, words) from rejected
    silent = _silent_damage(content, segments)
    if silent and damaged == "reject":
        raise RejectedPicture("damaged", silent)
    return DecodedPicture(picture.pixels_HWC, None, ("damaged",) * bool(silent) + ("unchecked", *picture.notes))


def _silent_damage(content: bytes, segments: list[Segment]) -> str:
    """Return what is wrong with a JPEG that the strict decoder accepts, or an empty string."""
    if lacks_scans(content, segments):
        return "the file ends before the last of its scans: what is there is a blurred picture"
    return "there are zeros where data of the picture should be" if lacks_data(content, segments) else ""


def _jpeg_holds_several(content: bytes) -> bool:
    with contextlib.suppress(RejectedPicture), _reading(content):
        return _holds_several(Image.open(io.BytesIO(content)))
    return False


def _jpeg_orientation(content: bytes) -> int:
    with contextlib.suppress(RejectedPicture), _reading(content):
        return _orientation(Image.open(io.BytesIO(content)))
    return 1


def _decode_other(content: bytes, damaged: Damaged) -> DecodedPicture:
    """Decode a picture of any format with Pillow."""
    with _reading(content):
        image: Image.Image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise RejectedPicture("too_large", f"{image.width}x{image.height} pixels")
        file_format, bits = str(image.format), _bits(image, content)
        if file_format in _OUTSIDE_FORMATS:
            raise RejectedPicture("undecodable", f"{file_format} is drawn by programs outside of this one")
        # Looking for further frames reads a GIF, so it is opened a second time for that.
        several = _holds_several(Image.open(io.BytesIO(content)) if file_format == "GIF" else image)
        # Pillow turns a TIFF itself while loading it.
        turned_by_pillow = file_format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _TURNS
        image.load()
        orientation = _orientation(image)
        if image.mode not in _MODE_NOTES:
            raise RejectedPicture("undecodable", f"pixels of mode {image.mode}: no rule brings them to 8-bit RGB")
        mode_note = _MODE_NOTES[image.mode]
        words, ends = _checked(image, content)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        pixels_HWC = np.array(image.convert("RGB"))
    if words and damaged == "reject":
        raise RejectedPicture("damaged", words)
    noted = {
        file_format.lower(): file_format not in ("JPEG", "MPO"),
        "one_of_several": several,
        "no_end_mark": not ends,
        "damaged": bool(words),
        "sixteen_bit": bits == 16,
        mode_note: bool(mode_note),
        "exif_rotated": turned_by_pillow or orientation in _TURNS,
    }
    pixels_HWC = _turned(pixels_HWC, orientation)
    return DecodedPicture(pixels_HWC, None, tuple(note for note, holds in noted.items() if holds))


def _checked(image: Image.Image, content: bytes) -> tuple[str, bool]:
    """Return what is wrong with a picture that Pillow accepts, or an empty string; and whether it has its end mark."""
    if image.format == "PNG":
        return damage_of_png(content)
    if image.format == "TIFF":
        return damage_of_tiff(image, content), True
    return "", image.format != "GIF" or gif_has_end_mark(content)


def _bits(image: Image.Image, content: bytes) -> int:
    """Return the stored bits per channel, which Pillow does not tell for colour pictures."""
    if image.format == "PNG":
        return content[24]
    if image.format == "TIFF":
        return int(max(np.ravel(getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, 8))))
    return 16 if image.mode.startswith("I;16") else 8


def _holds_several(image: Image.Image) -> bool:
    """Return whether an open file holds several pictures: frames, pages, sizes of an icon."""
    return bool(getattr(image, "is_animated", False)) or len(image.info.get("sizes", ())) > 1


@contextlib.contextmanager
def _reading(content: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises for these bytes into a RejectedPicture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF blocks, of which only the orientation matters
            yield
    except (RejectedPicture, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise RejectedPicture("undecodable", f"no known picture format: begins with {content[:16]!r}") from error
    except Image.DecompressionBombError as error:
        raise RejectedPicture("too_large", str(error)) from error
    except Exception as error:  # on odd bytes, parsers may raise anything
        reason = "truncated" if "truncated" in str(error) else "undecodable"
        raise RejectedPicture(reason, str(error) or type(error).__name__) from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if the block is absent or broken."""
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # on a broken block the parser may raise anything; the picture itself is complete
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _turned(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels upright."""
    if orientation not in _TURNS:
        return pixels_HWC
    return np.array(Image.fromarray(pixels_HWC).transpose(_TURNS[orientation]))
