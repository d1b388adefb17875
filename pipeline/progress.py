"""Progress for a person to follow: a bar on a terminal, a line every few seconds elsewhere."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 5.0


class _Lines:
    """Stream that turns tqdm's carriage returns into lines, for logs."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._file.write(line + "\n")

    def flush(self) -> None:
        self._file.flush()


def progress_bar(total: int, description: str, unit: str, **options: Any) -> "tqdm[Any]":
    """Return a tqdm bar on standard error.

    Args:
        total: Total number of units.
        description: Name of the activity, one or two words.
        unit: Name of the unit.
        options: Further options of tqdm.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, **options)
    lines: Any = _Lines(sys.stderr)
    return tqdm(
        total=total, desc=description, unit=unit, file=lines, mininterval=_SECONDS_BETWEEN_LINES, ncols=100, **options
    )
