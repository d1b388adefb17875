"""Encoded pictures stored as they are: as a whole file, or as a range of an uncompressed archive."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import SAMPLE_SCHEMA


def whole_files(rows: Sequence[tuple[str, int, str, int]]) -> pa.Table:
    """Return a table of `SAMPLE_SCHEMA` for pictures stored one per file.

    Args:
        rows: Source, class index, file and number of bytes of each picture.

    Raises:
        InputError: A file's name is not UTF-8.
    """
    try:
        return pa.table(
            {
                "source": [source for source, _, _, _ in rows],
                "class_index": [label for _, label, _, _ in rows],
                "file": [file for _, _, file, _ in rows],
                "offset": [0] * len(rows),
                "num_bytes": [num_bytes for _, _, _, num_bytes in rows],
            },
            schema=SAMPLE_SCHEMA,
        )
    except UnicodeEncodeError as error:
        raise InputError(f"a file name is not UTF-8: {error.object!a}; rename the file") from error


def read_whole_file(path: str | Path, num_bytes: int) -> bytes:
    """Read a file that had `num_bytes` bytes when it was listed.

    Raises:
        OSError: The file can't be read, or its length has changed.
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
