"""Which signal killed a worker, told by the worker itself: whoever watches its process need not know.

Python's faulthandler writes to a file as the signal arrives. The launcher makes the file where all workers see it, and
looks into it when one is lost. SIGKILL leaves nothing.
"""

import contextlib
import faulthandler
import os
import re
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


class FatalSignals:
    """A file for the last words of workers.

    Args:
        path: Path of the file; all workers see it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """Let workers write to the file while the block runs; where that is impossible, nothing is told."""
        with contextlib.suppress(OSError):
            self._path.write_bytes(b"")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def watch(self) -> None:
        """Let this process, a worker, write to the file when a signal kills it."""
        with contextlib.suppress(OSError):
            faulthandler.enable(os.open(self._path, os.O_WRONLY | os.O_APPEND), all_threads=False)

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
