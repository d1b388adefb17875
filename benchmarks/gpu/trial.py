"""What a check gets, and how it notes its figures. Neither torch nor DALI is imported before a check uses it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command import UserError
from pipeline.system.files import write_json

if TYPE_CHECKING:
    import torch

    from pipeline.dataset import Dataset

_SIGNIFICANT_DIGITS = 5
_MESSAGE_LENGTH = 300


class Failed(Exception):
    """A check found something wrong; the figures it noted are kept."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a check, in its own process.

    Attributes:
        is_dry: True if everything is tiny and on the CPU; the figures then only show that the check works.
        data: Folder with a dataset for each encoding; see `benchmarks.gpu.datasets`.
        out: Folder for files that people read.
        scratch: Folder for the check's own files; removed at the end.
        seconds: Length of one measurement of the loader, in seconds. A step gets 0.6 of it, an operation 0.25.
        deadline: Time at which the process is killed, by `time.monotonic`, which is the same in all processes.
        figures: Name -> figure, filled by `note`.
    """

    is_dry: bool
    data: Path
    out: Path
    scratch: Path
    seconds: float
    deadline: float
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def figures_path(self) -> Path:
        """File with the figures noted so far."""
        return self.scratch / "figures.json"

    @property
    def device(self) -> "torch.device":
        """The device that is checked: the first GPU, or the CPU in a dry run."""
        import torch

        return torch.device("cpu") if self.is_dry else torch.device("cuda", 0)

    def dataset(self, encoding: str) -> "Dataset":
        """Open the dataset with this encoding."""
        from pipeline.dataset import Dataset

        return Dataset.open(self.data / encoding)

    def note(self, name: str, value: Any) -> None:
        """Note a figure. It is written to disk at once, so it is kept if the check is killed."""
        self.figures[name] = _rounded(value)
        write_json(self.figures_path, self.figures)

    def has_time(self, seconds: float) -> bool:
        """Return whether that many seconds are left; always true in a dry run."""
        return self.is_dry or time.monotonic() + seconds < self.deadline

    def note_cases(self, cases: Mapping[str, Callable[[], Any]], seconds: float) -> None:
        """Note the figures of each case, or its error, or that there was no time for it.

        Args:
            cases: Name -> function that returns the figures; the most valuable cases come first.
            seconds: Time that a case may take, in seconds.

        Raises:
            Failed: No case succeeded.
        """
        num_successes = 0
        for name, case in cases.items():
            if not self.has_time(seconds):
                self.note(name, "no time")
                continue
            try:
                self.note(name, case())
                num_successes += 1
            except Exception as error:
                self.note(name, describe(error))
        if not num_successes:
            raise Failed("no case succeeded: " + "; ".join(f"{name}: {self.figures[name]}" for name in cases))


def describe(error: BaseException) -> str:
    """Return an error as one line: only its message if that is written for people, else with its type."""
    message = " ".join(str(error).split())
    if not isinstance(error, Failed | UserError):
        message = f"{type(error).__name__}: {message[:_MESSAGE_LENGTH]}"
    return message


def _rounded(value: Any) -> Any:
    """Return a figure as a JSON value, with its numbers rounded to the significant digits of a measurement."""
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {str(name): _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value if isinstance(value, bool | int | str | None) else str(value)
