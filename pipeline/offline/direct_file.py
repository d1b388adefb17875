"""A large file, written once from start to end, by its own thread and past the page cache.

    write() -> buffer -> thread: SHA-256, then the disk (O_DIRECT, if the file system supports it)

The bytes are not read again soon, so a copy of them in the page cache would cost time and displace useful data. The
writer does not wait for the disk either: when one buffer is full, it continues with the other.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import queue
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BUFFER_BYTES = 4 << 20
_NUM_BUFFERS = 2
_BLOCK_BYTES = 4096  # no disk has larger blocks; lengths and offsets of direct writes are multiples of it


@dataclass(frozen=True)
class WrittenFile:
    """Size and SHA-256 of a finished file."""

    num_bytes: int
    sha256: str


class DirectFile:
    """A new file to append to, as a context manager; the file is complete only after `finish`.

    Attributes:
        num_bytes: Number of bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        """Create the file.

        Raises:
            OSError: The file can't be created.
        """
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        with suppress(OSError):
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, os.O_DIRECT)
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self._error: Exception | None = None
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[tuple[mmap.mmap, int] | None] = queue.SimpleQueue()
        for _ in range(_NUM_BUFFERS):
            self._free.put(mmap.mmap(-1, _BUFFER_BYTES))  # begins at a page boundary, which direct writes require
        self._buffer, self._used = self._free.get(), 0
        self._thread = threading.Thread(target=self._run, name="direct file", daemon=True)
        self._thread.start()

    def __enter__(self) -> "DirectFile":
        """Return itself."""
        return self

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            OSError: Some bytes that were written earlier did not reach the disk.
        """
        self.num_bytes += len(data)
        start = 0
        while start < len(data):
            taken = min(len(data) - start, _BUFFER_BYTES - self._used)
            self._buffer[self._used : self._used + taken] = data[start : start + taken]
            start, self._used = start + taken, self._used + taken
            if self._used == _BUFFER_BYTES:
                self._hand_over()

    def finish(self) -> WrittenFile:
        """Flush everything to disk; nothing can be written afterwards.

        Raises:
            OSError: Not all bytes reached the disk.
        """
        self._hand_over()
        self._stop()
        if self._error is not None:
            raise self._error
        return WrittenFile(self.num_bytes, self._digest.hexdigest())

    def __exit__(self, *_: object) -> None:
        """Close the file, whether it is complete or not."""
        self._stop()

    def _stop(self) -> None:
        self._filled.put(None)
        self._thread.join()

    def _hand_over(self) -> None:
        self._filled.put((self._buffer, self._used))
        self._buffer, self._used = self._free.get(), 0
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        """Write the buffers that are handed over, until the end; after an error only return them."""
        try:
            offset = 0
            while (filled := self._filled.get()) is not None:
                buffer, num_bytes = filled
                if self._error is None:
                    self._store(buffer, num_bytes, offset)
                offset += num_bytes
                self._free.put(buffer)
            if self._error is None and offset == self.num_bytes:
                self._flush()
        finally:
            os.close(self._descriptor)

    def _store(self, buffer: mmap.mmap, num_bytes: int, offset: int) -> None:
        with memoryview(buffer) as view:
            self._digest.update(view[:num_bytes])
            end = -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES  # more than is used at the file's end; cut off later
            start = 0
            try:
                while start < end:
                    start += self._write_at(view[start:end], offset + start)
            except OSError as error:
                self._error = OSError(error.errno, error.strerror, str(self._path))
            except Exception as error:  # of any kind: the writer is waiting for its buffer
                self._error = error

    def _write_at(self, part: memoryview, offset: int) -> int:
        try:
            return os.pwrite(self._descriptor, part, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, 0)  # the file system accepts O_DIRECT, but no direct writes
            return os.pwrite(self._descriptor, part, offset)

    def _flush(self) -> None:
        try:
            os.ftruncate(self._descriptor, self.num_bytes)
            os.fsync(self._descriptor)
        except OSError as error:
            self._error = OSError(error.errno, error.strerror, str(self._path))
