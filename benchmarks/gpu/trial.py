"""What a check is given, and where it notes what it found. Standard library only, as long as nothing is measured."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command import InputError
from pipeline.system.files import write_json

if TYPE_CHECKING:
    import torch

    from pipeline.dataset import Dataset

_SIGNIFICANT_DIGITS = 5
_MESSAGE_LENGTH = 300


class Failed(Exception):
    """A check found something wrong; what it noted is kept."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a check, in its own process.

    Attributes:
        is_dry: Everything is tiny and on the CPU; the figures say only that the check works.
        data: Holds a dataset in a folder for each encoding; see `benchmarks.gpu.datasets`.
        out: For what the check writes for people.
        scratch: For what it needs itself; removed at the end.
        seconds: Of one measurement of the loader; of a step it is 0.6, of an operation 0.25 of that.
        deadline: When the process is ended, by `time.monotonic`, which all processes share.
        figures: Name -> what was found, by `note`.
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
        """Where the figures are, as soon as they are known."""
        return self.scratch / "figures.json"

    @property
    def device(self) -> "torch.device":
        """What is checked: the first GPU, or in a dry run the CPU."""
        import torch

        return torch.device("cpu") if self.is_dry else torch.device("cuda", 0)

    def dataset(self, encoding: str) -> "Dataset":
        """Open the dataset of an encoding."""
        from pipeline.dataset import Dataset

        return Dataset.open(self.data / encoding)

    def note(self, name: str, value: Any) -> None:
        """Note a figure. It is on disk at once, so a check that is ended leaves what it had."""
        self.figures[name] = _rounded(value)
        write_json(self.figures_path, self.figures)

    def has_time(self, seconds: float) -> bool:
        """Return whether that many seconds are left, which a dry run need not ask."""
        return self.is_dry or time.monotonic() + seconds < self.deadline

    def note_cases(self, cases: Mapping[str, Callable[[], Any]], seconds: float) -> None:
        """Note what each case returns, or its error; after the last one that fits, that there was no time.

        Args:
            cases: Name -> what gives its figures; the most valuable come first.
            seconds: That a case may take.

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
    """Return an error in a line: its message alone where it is meant for people, else with its type."""
    message = " ".join(str(error).split())
    if not isinstance(error, Failed | InputError):
        message = f"{type(error).__name__}: {message[:_MESSAGE_LENGTH]}"
    return message


def _rounded(value: Any) -> Any:
    """Return a figure as JSON can hold it, its numbers cut to the digits that a measurement has."""
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {str(name): _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value if isinstance(value, bool | int | str | None) else str(value)
