"""A log of one JSON line per entry, which one process writes and others may read meanwhile."""

import fcntl
import json
import time
from pathlib import Path
from typing import IO, Any

from pipeline.command import InputError
from pipeline.system.os_errors import is_out_of_reach

_POLL_SECONDS = 0.2


class JsonLog:
    """Appends to a log; each line is written whole, and says when it was written."""

    def __init__(self, path: Path, wait_seconds: float = 0.0) -> None:
        """Open the log for this process alone; a line torn by a kill is closed off by the next.

        Args:
            path: Of the log.
            wait_seconds: How long another process that still writes it is waited for.

        Raises:
            InputError: Another process writes it.
        """
        # Unbuffered: a line that can't be written would stay in a buffer, and fail once more when the log is closed.
        self._file = open(path, "ab+", buffering=0)
        deadline = time.monotonic() + wait_seconds
        # The kernel releases the lock when the process dies, however it dies.
        try:
            while not _is_locked(self._file):
                if time.monotonic() >= deadline:
                    raise InputError(
                        f"{path.parent} is being trained by another job; wait for it, or stop it first (the lock of a "
                        "lost machine lasts up to two minutes)"
                    )
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self._file.close()
            raise
        self._ends_torn = False
        if self._file.seek(0, 2):
            self._file.seek(-1, 2)
            self._ends_torn = self._file.read(1) != b"\n"

    def write(self, kind: str, **values: Any) -> None:
        """Append one line; one that an error tears is closed off by the next."""
        entry = {"kind": kind, **values, "time": round(time.time(), 3)}
        left = b"\n" * self._ends_torn + (json.dumps(entry) + "\n").encode()
        while left:
            left = left[self._file.write(left) :]
            self._ends_torn = bool(left)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_locked(file: IO[bytes]) -> bool:
    """Try to lock a file for this process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if is_out_of_reach(error):
            raise
        raise InputError(
            f"{file.name} can't be locked ({error.strerror}); its file system must have file locks"
        ) from error
    return True
