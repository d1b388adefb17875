"""Encoded pictures that lie in files as they are: a whole file, or a range of an uncompressed archive."""

import errno
from pathlib import Path


def read_whole_file(path: str | Path, num_bytes: int) -> bytes:
    """Read a file that had `num_bytes` bytes when it was listed.

    Raises:
        OSError: The file can't be read or has another length by now.
    """
    with open(path, "rb", buffering=0) as file:
        content = file.read()
    if len(content) != num_bytes:
        raise OSError(errno.EIO, f"has {len(content)} bytes, {num_bytes} when it was listed", str(path))
    return content


def read_byte_range(path: Path, offset: int, num_bytes: int) -> bytes:
    """Read `num_bytes` bytes at `offset`.

    Raises:
        OSError: The file can't be read or is shorter than listed.
    """
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        content = file.read(num_bytes)
    if len(content) != num_bytes:
        raise OSError(errno.EIO, "shorter than when it was listed", str(path))
    return content
