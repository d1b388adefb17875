"""Reads a run's `metrics.jsonl` as it grows."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from cluster.run.run_log import Line, parse_metrics_line

_POLL_SECONDS = 0.2


class Follower:
    """Passes the new lines of a growing log to a function, from a thread, while the block runs.

    Args:
        path: Path of the log.
        see: Function that gets each line, once and in order. If it raises, it gets no more; the error is raised as the
            block ends.
        from_start: Whether it also gets the lines that exist already.
    """

    def __init__(self, path: Path, see: Callable[[Line], None], *, from_start: bool = False) -> None:
        self._path, self._see = path, see
        self._position = path.stat().st_size if path.exists() and not from_start else 0
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Follower":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Pass on the remaining lines and end the thread."""
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _follow(self) -> None:
        stopping = False
        try:
            while not stopping:
                stopping = self._stop.wait(_POLL_SECONDS)
                self._see_new()
        except BaseException as failure:  # in a thread: nobody else would hear of it
            self._error = failure

    def _see_new(self) -> None:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._position)
                content = file.read()
        except OSError:  # the file does not exist yet, or a shared file system is out of reach for a moment
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        for text in whole.splitlines():
            line = parse_metrics_line(text)
            if line is not None:  # else torn by a kill
                self._see(line)
