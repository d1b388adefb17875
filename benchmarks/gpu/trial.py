"""What a check gets, and how it notes its figures. Neither torch nor DALI is imported before a check uses it."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import Values
from pipeline.command import UserError
from pipeline.system.files import write_json

if TYPE_CHECKING:
    import torch

    from pipeline.dataset import Dataset

ROUNDS = "rounds"  # figure that holds the values of all rounds, for the record
NO_TIME = "no time"
Measure = Callable[[], Mapping[str, float]]
_NUM_ROUNDS, _NUM_DRY_ROUNDS = 3, 1
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
        planned_end: Time after which no further case begins, by `time.monotonic`, which is the same in all processes.
        deadline: Time at which the process is killed, by the same clock.
        figures: Name -> figure, filled by `note`.
    """

    is_dry: bool
    data: Path
    out: Path
    scratch: Path
    seconds: float
    planned_end: float
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
        return self.is_dry or time.monotonic() + seconds < self.planned_end

    def note_cases(self, cases: Mapping[str, Callable[[], Any]], seconds: float) -> None:
        """Note the figures of each case, or its error, or that there was no time for it.

        Args:
            cases: Name -> function that returns the figures; the most valuable cases come first.
            seconds: Time that a case may take, in seconds.

        Raises:
            Failed: No case succeeded, and no rounds were noted before.
        """
        num_successes = 0
        for name, case in cases.items():
            if not self.has_time(seconds):
                self.note(name, NO_TIME)
                continue
            try:
                self.note(name, case())
                num_successes += 1
            except Exception as error:
                self.note(name, describe(error))
        if not num_successes and ROUNDS not in self.figures:
            raise Failed("no case succeeded: " + "; ".join(f"{name}: {self.figures[name]}" for name in cases))

    def note_rounds(self, alternatives: Mapping[str, Callable[[], Measure]]) -> Values:
        """Measure alternatives in turn, A B C, A B C, ..., and note the medians and the values of all rounds.

        The error of an alternative is noted, and the others go on.

        Args:
            alternatives: Name -> function that prepares the alternative and returns the function that measures it once.
                The name of a quantity ends in its unit, as in `benchmarks.record`.

        Returns:
            The values of all rounds.

        Raises:
            Failed: No alternative succeeded.
        """
        measures: dict[str, Measure] = {}
        for name, prepare in alternatives.items():
            self._try(name, lambda name=name, prepare=prepare: measures.update({name: prepare()}))
        values: Values = {}
        for _ in range(_NUM_DRY_ROUNDS if self.is_dry else _NUM_ROUNDS):
            for name in list(measures):
                if not self._try(name, lambda name=name: _add(values, name, measures[name]())):
                    del measures[name]
        if not values:
            raise Failed("nothing succeeded: " + "; ".join(f"{name}: {self.figures[name]}" for name in alternatives))
        self.add_rounds(values)
        return values

    def add_rounds(self, values: Values) -> None:
        """Note values of rounds: their medians under their own name, and all of them for the record."""
        for name, measured in values.items():
            medians = {quantity: statistics.median(rounds) for quantity, rounds in measured.items()}
            known = self.figures.get(name)
            self.note(name, {**medians, "error": known} if isinstance(known, str) else medians)
        self.note(ROUNDS, self.figures.get(ROUNDS, {}) | values)

    def _try(self, name: str, work: Callable[[], object]) -> bool:
        """Work on an alternative; return whether it succeeded, and note its error if not."""
        try:
            work()
        except Exception as error:
            self.note(name, describe(error))
            return False
        return True


def merged_rounds(checks: Iterable[Mapping[str, Any]]) -> Values:
    """Return the values of all rounds of several checks, from their figures."""
    values: Values = {}
    for figures in checks:
        values |= figures.get(ROUNDS, {})
    return values


def _add(values: Values, name: str, measured: Mapping[str, float]) -> None:
    for quantity, value in measured.items():
        values.setdefault(name, {}).setdefault(quantity, []).append(float(value))


def describe(error: BaseException) -> str:
    """Return an error as one line: only its message if that is written for people, else with its type."""
    message = " ".join(str(error).split())
    if not isinstance(error, Failed | UserError):
        message = f"{type(error).__name__}: {message[:_MESSAGE_LENGTH]}"
    return message


def _rounded(value: Any) -> Any:
    """Return a figure as a JSON value: numbers rounded to the significant digits of a measurement, NaN as text."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {str(name): _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value if isinstance(value, bool | int | str | None) else str(value)  # infinity and NaN are not JSON
