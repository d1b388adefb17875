"""One shard: a WebDataset tar and its DALI index, written in one pass.

The tar is USTAR with time stamp 0 and a fixed owner, so the same samples give the same bytes. Python's tarfile
writes it: webdataset's own TarWriter ignores its `format` argument and reports no offsets
(docs/decisions/0001-tarfile-writes-the-shards.md).
"""

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from pipeline.files import atomic_file

INDEX_VERSION = "v1.2"


class _HashingFile(io.RawIOBase):
    """A write-only stream that counts and hashes what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0
        self._digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True)
class WrittenFile:
    """Size and SHA-256 of a finished file."""

    num_bytes: int
    sha256: str


class ShardWriter:
    """Writes samples into `NAME.tar` and `NAME.idx`; as a context manager, both appear only if the block succeeds."""

    def __init__(self, folder: Path, name: str) -> None:
        """Take the folder and the shard's name without an ending."""
        self._tar_path, self._index_path = folder / f"{name}.tar", folder / f"{name}.idx"
        self._index_lines: list[str] = []
        self.files: dict[str, WrittenFile] = {}

    def __enter__(self) -> "ShardWriter":
        """Open the tar under a temporary name."""
        self._context = atomic_file(self._tar_path)
        self._stream = _HashingFile(self._context.__enter__())
        self._tar = tarfile.open(fileobj=self._stream, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    def write(self, key: str, members: dict[str, bytes]) -> int:
        """Append one sample.

        Args:
            key: Base name of the members.
            members: Extension -> bytes; the picture first.

        Returns:
            Offset of the first member's bytes in the tar.
        """
        groups = []
        for extension, data in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(data)
            info.mode = 0o644
            self._tar.addfile(info, io.BytesIO(data))
            offset = self._tar.offset - _padded(len(data))
            groups.append((extension, offset, len(data), info.name))
        self._index_lines.append(" ".join(f"{e} {o} {n} {name}" for e, o, n, name in groups))
        return int(groups[0][1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish both files, or remove what was written."""
        if kind is None:
            self._tar.close()
        self._context.__exit__(kind, error, trace)
        if kind is not None:
            return
        self.files[self._tar_path.name] = WrittenFile(self._stream.tell(), self._stream.hexdigest())
        index = "\n".join([f"{INDEX_VERSION} {len(self._index_lines)}", *self._index_lines, ""]).encode()
        with atomic_file(self._index_path) as file:
            file.write(index)
        self.files[self._index_path.name] = WrittenFile(len(index), hashlib.sha256(index).hexdigest())


def _padded(num_bytes: int) -> int:
    """Return the length of a member's data in the tar: whole blocks of 512 bytes."""
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
