"""Where the members of an uncompressed tar lie, found by its headers alone.

Seeks from header to header, so that a hundred gigabytes are scanned as fast as their headers can be read, and looks into
tars inside a tar.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.command import InputError


class Member(NamedTuple):
    """A regular file in a tar: `offset` is that of its bytes in the outermost file."""

    name: str
    offset: int
    num_bytes: int
