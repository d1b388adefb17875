"""The mark of the launch that is under way, by which workers that were given up learn that theirs is over.

A worker whose node is cut off from the cluster, but not from the files, learns it in no other way, and would keep the
run's log from the workers that take its place.
"""

import contextlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

CURRENT_LAUNCH = "current-launch"
_OVER = "over"
_WHOLE = re.compile(rf"([0-9a-f]{{32}}|{_OVER})\n")


class LaunchMark:
    """The mark of one launch, kept in a file that is visible to all; the process that launches the workers writes it.

    The file is written in place and stays, as that of `StopRequest`. Only a mark of another launch, or that of the end,
    says that a launch is over. A file that is missing, cut short or out of reach says nothing.

    Args:
        folder: Folder of the launches, of which one is under way at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._id = folder / CURRENT_LAUNCH, uuid.uuid4().hex
        self._was_seen = False  # before, the file may still hold what was written earlier

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """Mark the launch as under way while the block runs; if that can't be written, nothing is told."""
        with contextlib.suppress(OSError):
            self._path.write_text(f"{self._id}\n")
        try:
            yield
        finally:
            if self._read() == self._id:
                with contextlib.suppress(OSError):
                    self._path.write_text(f"{_OVER}\n")

    def is_over(self) -> bool:
        """Return whether the launch is over; False while that is not known."""
        found = self._read()
        self._was_seen = self._was_seen or found == self._id
        return self._was_seen and found not in (None, self._id)

    def _read(self) -> str | None:
        """Return the mark in the file, or None if it holds none."""
        try:
            found = _WHOLE.fullmatch(self._path.read_text(errors="replace"))
        except OSError:
            return None
        return None if found is None else found[1]
