"""A log with one JSON line per entry, written by one process and readable by others at the same time."""

import fcntl
import json
import time
from pathlib import Path
from typing import IO, Any

from pipeline.command import InputError
from pipeline.system.os_errors import is_out_of_reach

_POLL_SECONDS = 0.2


class JsonLog:
    """Appends lines to a log, each with the time when it was written."""

    def __init__(self, path: Path, wait_seconds: float = 0.0) -> None:
        """Open the log for this process alone; the next line terminates one that a kill has torn.

        Args:
            path: Path of the log.
            wait_seconds: How long to wait for another process that still writes it.

        Raises:
            InputError: Another process writes it.
        """
        # Unbuffered: otherwise a line that can't be written would stay in the buffer and fail again at closing.
        self._file = open(path, "ab+", buffering=0)
        deadline = time.monotonic() + wait_seconds
        # The kernel releases the lock when the process dies, however it dies.
        try:
            while not _is_locked(self._file):
                if time.monotonic() >= deadline:
                    raise InputError(
                        f"{path.parent} is being written by another job; wait for it, or stop it first (if its machine "
                        "was lost, its lock may last two more minutes)"
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
        """Append one line; if an error tears it, the next line terminates it."""
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
            f"{file.name} can't be locked ({error.strerror}); its file system must support file locks"
        ) from error
    return True
