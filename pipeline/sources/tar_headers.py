"""Where the members of an uncompressed tar lie, found by its headers alone.

Goes from header to header and reads nothing between them, so that it costs the same for small and for large members. A
tar inside a tar is a range of the outer file.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipeline.command import InputError

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(_BLOCK)


class Member(NamedTuple):
    """A regular file in a tar; `offset` is that of its first byte in the (outermost) file."""

    name: str
    offset: int
    num_bytes: int


def scan_tar(file: BinaryIO, start: int, end: int) -> Iterator[Member]:
    """Yield the members of the tar that lies in `file` from byte `start` to byte `end`.

    Args:
        file: Opened unbuffered: the next header is far away.
        start: Of the tar's first header.
        end: Of the tar.

    Raises:
        InputError: A header is damaged, or the tar ends before its end mark.
    """
    while True:
        file.seek(start)
        header = file.read(_BLOCK) if start + _BLOCK <= end else b""
        if header == _END:
            return
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        except tarfile.HeaderError as error:
            raise InputError(
                f"{file.name} is damaged or cut short at byte {start} ({error}); get the archive again"
            ) from error
        offset = start + _BLOCK
        if member.isreg():
            yield Member(member.name.rpartition("/")[2], offset, member.size)
        start = offset + -(-member.size // _BLOCK) * _BLOCK
