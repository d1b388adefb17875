"""Which signal killed a worker, told by the worker itself, since whoever watches its process need not know.

Python's faulthandler writes it as the signal arrives, to a file that the launcher sees. SIGKILL leaves nothing.
"""

import contextlib
import faulthandler
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

_SIGNALS = {
    "Bus error": "SIGBUS",
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Illegal instruction": "SIGILL",
    "Floating point exception": "SIGFPE",
}
_MEANINGS = {
    "SIGBUS": "a file that it had mapped, a shard or one in /dev/shm, was cut short or its disk failed; `python -m "
    "pipeline.verify DATASET` finds a shard that is not whole",
}


class LastWords:
    """A file for the last words of the workers of one launch. No other launch has it.

    Args:
        folder: Folder that all workers see and write to.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f".faults-{uuid.uuid4().hex}.tmp"
        self._descriptor: int | None = None  # of a worker

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the file as long as the block runs; if it can't be made, nothing is told."""
        with contextlib.suppress(OSError):
            self._path.write_bytes(b"")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def prepare(self) -> None:
        """Let this process, a worker, write to the file when a signal kills it; to be called until the file is seen.

        On a network file system, a new file may stay invisible for half a minute.
        """
        if self._descriptor is None:
            with contextlib.suppress(OSError):
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
                faulthandler.enable(self._descriptor, all_threads=False)

    def told(self) -> str | None:
        """Return which signal killed a worker, and what it means where we know; None where nothing was written."""
        try:
            text = self._path.read_text(errors="replace").replace("-", " ")  # Python 3.14 writes `Floating-point`
        except OSError:
            return None
        # Not by lines: workers that die at one time write between each other's words, of which each is whole.
        found = re.search("|".join(_SIGNALS), text) or re.search(r"(?<=Fatal Python error: ).+", text)
        if found is None:
            return None
        name = _SIGNALS.get(found[0], found[0])
        return f"{name}: {_MEANINGS[name]}" if name in _MEANINGS else name
