"""What launcher and workers tell each other by a file that all see, and which lasts as long as the launch.

To the launcher: which signal killed a worker, told by the worker itself, since whoever watches its process need not
know. Python's faulthandler writes it as the signal arrives. SIGKILL leaves nothing.

To the workers: that their launch is over. One whose node is cut off from the cluster, but not from the files, learns it
in no other way, and would keep the run's log from the workers that take its place.
"""

import contextlib
import errno
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


class LaunchFile:
    """A file that lasts as long as a launch, for the last words of its workers.

    Args:
        path: Path of the file; all workers see it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None  # of a worker

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """Let the launch last as long as the block runs; where no file can be made, nothing is told."""
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
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            faulthandler.enable(self._descriptor, all_threads=False)

    def is_over(self) -> bool:
        """Return whether the launch of this process, a worker that watches, is over; False while that is not known."""
        if self._descriptor is None:
            return False
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return True
        except OSError as error:
            return error.errno == errno.ESTALE  # on a network file system: removed by another machine

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
