"""Checks for damage that Pillow ignores, by a format's own checksums and lengths."""

import struct
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> channels
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_DEFLATE = (8, 32946)  # TIFF's numbers for this compression: Adobe's, and the older one


def damage_of_png(content: bytes) -> tuple[str, bool]:
    """Return what is wrong with the chunks of a PNG's pixels, or an empty string; and whether it has its end mark."""
    expected, packed, has_end_mark = 0, zlib.decompressobj(), False
    num_bytes = 0
    for name, data, checksum in _png_chunks(content):
        if name in (b"IHDR", b"PLTE", b"IDAT") and zlib.crc32(name + data) != checksum:
            return f"the checksum of a {name.decode()} chunk is wrong", True
        if name == b"IHDR":
            expected = _png_num_bytes(data)
        elif name == b"IDAT" and num_bytes < expected:
            try:
                num_bytes += len(packed.decompress(data, expected - num_bytes))
            except zlib.error as error:
                return str(error), True
        has_end_mark = name == b"IEND"
        if has_end_mark:
            break
    if num_bytes < expected:
        return f"the pixels end after {num_bytes} of {expected} bytes", has_end_mark
    return "", has_end_mark


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    place = len(_PNG_SIGNATURE)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        end = place + 8 + length
        if end + 4 > len(content):
            return
        yield content[place + 4 : place + 8], content[place + 8 : end], struct.unpack_from(">I", content, end)[0]
        place = end + 4


def _png_num_bytes(header: bytes) -> int:
    """Return the number of bytes of the unpacked rows, including a filter byte per row."""
    width, height, depth, color_type, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits = depth * _PNG_CHANNELS[color_type]
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    num_bytes = 0
    for left, top, step_x, step_y in passes:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            num_bytes += rows * (1 + (columns * bits + 7) // 8)
    return num_bytes


def gif_has_end_mark(content: bytes) -> bool:
    """Return whether a GIF's blocks are followed by its end mark."""
    place = 13 + _gif_colors(content[10])
    while place < len(content) and content[place] != ord(";"):
        kind = content[place]
        if kind == ord("!"):  # an extension
            place += 2
        elif kind == ord(",") and place + 9 < len(content):  # a frame
            place += 11 + _gif_colors(content[place + 9])
        elif kind != 0:
            return False
        while place < len(content) and content[place]:
            place += 1 + content[place]
        place += 1
    return place < len(content)


def _gif_colors(flags: int) -> int:
    """Return the length of a GIF's colour table, in bytes."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def damage_of_tiff(image: Image.Image, content: bytes) -> str:
    """Return what is wrong with the strips or tiles of a deflated TIFF, or an empty string."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(ExifTags.Base.Compression) not in _DEFLATE:
        return ""
    for offsets, lengths in (
        (ExifTags.Base.StripOffsets, ExifTags.Base.StripByteCounts),
        (ExifTags.Base.TileOffsets, ExifTags.Base.TileByteCounts),
    ):
        for offset, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False):
            try:
                zlib.decompress(content[offset : offset + length])
            except zlib.error as error:
                return str(error)
    return ""
