"""Where the members of an uncompressed tar lie, found by its headers alone.

Goes from header to header and reads nothing between them, so that it costs the same for small and for large members. A
tar inside a tar is a range of the outer file. tarfile's own iteration ends silently at a damaged or missing header.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipeline.command import InputError


class Member(NamedTuple):
    """A regular file in a tar; `offset` is that of its first byte in the (outermost) file."""

    name: str
    offset: int
    num_bytes: int


def scan_tar(file: BinaryIO, start: int, end: int) -> Iterator[Member]:
    """Yield the members of a tar by their base names, without the folders; see `scan_paths`."""
    for path, offset, num_bytes in scan_paths(file, start, end):
        yield Member(path.rpartition("/")[2], offset, num_bytes)


def scan_paths(file: BinaryIO, start: int, end: int) -> Iterator[Member]:
    """Yield the members of the tar that lies in `file` from byte `start` to byte `end`, by their whole names.

    Args:
        file: Opened unbuffered: the next header is far away. It may be read elsewhere between two members.
        start: Of the tar's first header. USTAR, GNU (long names) and PAX headers are understood.
        end: Of the tar.

    Raises:
        InputError: A header is damaged, the tar ends before its end mark, or a member is stored with holes.
    """
    try:
        file.seek(start)
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="replace")
        tar.offset = start  # the constructor has read on
        while True:
            start = tar.offset
            if start + tarfile.BLOCKSIZE > end:
                raise tarfile.ReadError("no end mark")
            file.seek(start)
            member = tarfile.TarInfo.fromtarfile(tar)
            if member.issparse():
                raise InputError(f"{file.name} stores {member.name} with holes; pack it again without --sparse")
            if member.isreg():
                yield Member(member.name, member.offset_data, member.size)
    except (tarfile.TarError, ValueError) as error:
        file.seek(start)
        if start + tarfile.BLOCKSIZE <= end and file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
            return  # the end mark
        raise InputError(
            f"{file.name} is damaged or cut short at byte {start} ({error}); get the archive again"
        ) from error
