"""Pictures for tests, and the odd files that are made of them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def photo(width: int = 201, height: int = 149) -> Image.Image:
    """Return smooth colour with some noise, as a JPEG encoder expects it."""
    x, y = np.meshgrid(np.linspace(40, 210, width), np.linspace(40, 210, height))
    smooth = np.stack([x, y, (x + y) / 2], axis=-1)
    noise = np.random.Generator(np.random.Philox(key=1)).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_rows(
    rows: bytes, width: int, height: int, depth: int = 8, color_type: int = 2, interlaced: bool = False
) -> bytes:
    """Return a PNG of rows that begin with their filter's number, however many they are."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in chunks.items())


def png_of_sixteen_bits(pixels: np.ndarray) -> bytes:
    """Return a PNG of uint16 pixels (height, width, channels)."""
    height, width, num_channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png_of_rows(rows, width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[num_channels])


def with_zeros(content: bytes, length: int = 4096) -> bytes:
    """Return a file with a block of zeros in its middle."""
    middle = len(content) // 2
    return content[:middle] + bytes(length) + content[middle + length :]


def before_mark(content: bytes, mark: bytes, inserted: bytes) -> bytes:
    """Return a file with something inserted before the first of a mark."""
    place = content.index(mark)
    return content[:place] + inserted + content[place:]


def changed(content: bytes, place: int, replacement: bytes) -> bytes:
    """Return a file with other bytes at a place."""
    return content[:place] + replacement + content[place + len(replacement) :]
