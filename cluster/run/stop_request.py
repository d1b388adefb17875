"""The stop flag of a run, with which the driver asks the workers to stop at a checkpoint."""

from pathlib import Path


class StopRequest:
    """A stop flag for the workers of a run, stored in a file visible to all; the process that launches them writes it.

    The file is written in place: a file that is opened anew shows its latest content even on network file systems,
    where a new file may stay invisible for half a minute.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def clear(self) -> None:
        """Let the workers run."""
        self._path.write_text("go on\n")

    def make(self) -> None:
        """Ask the workers to stop."""
        self._path.write_text("stop\n")

    def is_made(self) -> bool:
        """Return whether the workers were asked to stop."""
        try:
            return self._path.read_text() == "stop\n"
        except OSError:  # nobody has written it yet
            return False
