"""One shard: a WebDataset tar and its DALI index, written in one pass.

The tar is USTAR with time stamp 0 and a fixed owner, so the same samples give the same bytes. The headers are made with
Python's tarfile: webdataset's own TarWriter ignores its `format` argument and reports no offsets
(docs/decisions/0001-tarfile-writes-the-shards.md).
"""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.offline.direct_file import DirectFile, WrittenFile
from pipeline.system.files import atomic_file, renamed_at_end

_INDEX_VERSION = "v1.2"
_BLANK_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # made once: it takes longer than writing a sample
_NAME_BYTES, _SIZE_AT, _SIZE_DIGITS, _CHECK_SUM_AT = 100, 124, 11, 148  # POSIX.1-1988
# Sum of all bytes except those that are filled in; the check sum counts itself as eight spaces.
_BLANK_SUM = (
    sum(_BLANK_HEADER)
    - sum(_BLANK_HEADER[_SIZE_AT : _SIZE_AT + _SIZE_DIGITS])
    - sum(_BLANK_HEADER[_CHECK_SUM_AT : _CHECK_SUM_AT + 8])
    + 8 * ord(" ")
)
IndexGroup = tuple[str, int, int, str]  # one member: extension, offset of its bytes, number of bytes, name


class ShardWriter:
    """Writes samples into `NAME.tar` and `NAME.idx`.

    Attributes:
        files: Size and hash of each written file, by name, once the block of `open` has ended.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Take the folder and the shard's name without an ending."""
        self._tar_path, self._index_path = folder / f"{name}.tar", folder / f"{name}.idx"
        self._index_lines: list[str] = []
        self.files: dict[str, WrittenFile] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Take samples in the block; at its end both files appear, and if it raises, neither does."""
        with renamed_at_end(self._tar_path) as aside, DirectFile(aside) as self._tar:
            yield
            end = self._tar.num_bytes + 2 * tarfile.BLOCKSIZE  # the end mark, then padding to whole records
            self._tar.write(bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - self._tar.num_bytes))
            written = self._tar.finish()
        self.files[self._tar_path.name] = written
        index = index_text(self._index_lines).encode()
        with atomic_file(self._index_path) as file:
            file.write(index)
        self.files[self._index_path.name] = WrittenFile(len(index), hashlib.sha256(index).hexdigest())

    def write(self, key: str, members: dict[str, bytes]) -> int:
        """Append one sample.

        Args:
            key: Base name of the members.
            members: Bytes of each member by its extension, the picture first.

        Returns:
            Offset of the first member's bytes in the tar.
        """
        groups: list[IndexGroup] = []
        blocks, end = [], self._tar.num_bytes
        for extension, data in members.items():
            name = f"{key}.{extension}"
            groups.append((extension, end + tarfile.BLOCKSIZE, len(data), name))
            padding = bytes(padded_length(len(data)) - len(data))
            blocks += [_header(name.encode("ascii"), len(data)), data, padding]
            end += tarfile.BLOCKSIZE + len(data) + len(padding)
        self._tar.write(b"".join(blocks))
        self._index_lines.append(index_line(groups))
        return groups[0][1]


def _header(name: bytes, num_bytes: int) -> bytes:
    """Return the USTAR header of a member: tarfile's blank header with name, size and check sum filled in."""
    if len(name) > _NAME_BYTES or num_bytes >= 8**_SIZE_DIGITS:
        raise ValueError(f"a member {name!r} of {num_bytes} bytes has no place in a USTAR header")
    size = b"%0*o" % (_SIZE_DIGITS, num_bytes)
    header = bytearray(_BLANK_HEADER)
    header[: len(name)] = name
    header[_SIZE_AT : _SIZE_AT + _SIZE_DIGITS] = size
    check_sum = _BLANK_SUM + sum(name) + sum(size)
    header[_CHECK_SUM_AT : _CHECK_SUM_AT + 8] = b"%06o\0 " % check_sum
    return bytes(header)


def index_line(groups: Sequence[IndexGroup]) -> str:
    """Return the line of a sample in DALI's index."""
    return " ".join(f"{extension} {offset} {num_bytes} {name}" for extension, offset, num_bytes, name in groups)


def index_text(lines: Sequence[str]) -> str:
    """Return the content of DALI's index of a shard, made of the lines of its samples."""
    return "\n".join([f"{_INDEX_VERSION} {len(lines)}", *lines, ""])


def padded_length(num_bytes: int) -> int:
    """Return the length of a member's data in the tar: whole blocks of 512 bytes."""
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
