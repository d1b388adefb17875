"""Typed lines of a run's two logs; no other module knows how they are written.

`metrics.jsonl` has the run's numbers, written by the first worker. `launches.jsonl` records what happened to the
workers, written by the process that launches them. To watch a run, read the files: Ray carries no metrics (its reports
are barriers, and it does not keep them). A line is a JSON object with its `kind`, the fields of its class, and `time`.

    {"kind": "start", "step": 500, "world_size": 2, "time": 1764321600.123}

Both logs only grow. Read them from the front: a `resume` rolls back all lines of later steps before it.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cluster.run.json_log import JsonLog


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a log.

    Attributes:
        time: Time when the line was written, in seconds since 1970; set by the log.
    """

    kind: ClassVar[str]
    time: float = field(default=0.0, compare=False)

    def values(self) -> dict[str, Any]:
        """Return the fields as JSON values, without kind and time."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "time"}


@dataclass(frozen=True, kw_only=True)
class Started(Line):
    """The workers begin.

    Attributes:
        step: Step of the checkpoint they resume from, or 0.
        world_size: Number of workers.
        exchange: Strategy by which they combine their gradients.
    """

    kind: ClassVar[str] = "start"
    step: int
    world_size: int
    exchange: str = "allreduce"  # runs of older versions do not say


@dataclass(frozen=True, kw_only=True)
class DecodingChosen(Line):
    """The way to decode was chosen by a trial (`decode: auto`).

    Attributes:
        decode: Decoder; this and the other fields are those of `pipeline.online.batch.LoaderConfig`.
        gpu_share: Fraction of the samples that the GPU decodes.
        hw_decoder_load: Fraction of these that the GPU's JPEG engines decode.
    """

    kind: ClassVar[str] = "decoding"
    decode: str
    gpu_share: float
    hw_decoder_load: float


@dataclass(frozen=True, kw_only=True)
class ExchangeChosen(Line):
    """The strategy to combine gradients was chosen by a measurement (`--exchange auto`); it holds for this run.

    Attributes:
        exchange: Strategy with the shortest predicted step.
        world_size: Number of workers that it was chosen for.
        device: Type of their devices, `cpu` or `cuda`.
        latency_seconds: Latency of the link between them.
        bytes_per_second: Bandwidth of the link.
        step_seconds: Predicted time of a step by strategy.
    """

    kind: ClassVar[str] = "exchange"
    exchange: str
    world_size: int
    device: str
    latency_seconds: float
    bytes_per_second: float
    step_seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Steps(Line):
    """The training steps since the last line.

    Attributes:
        step: Latest step.
        samples_seen: Samples seen after the latest step.
        epoch: Samples seen, divided by the size of the training set.
        loss: Mean loss of the steps.
        top1: Fraction of the steps' samples whose class was predicted.
        learning_rate: Learning rate of the latest step.
        images_per_second: Throughput of all workers, by the time that the first worker's device took.
        data_wait_fraction: Fraction of the time that the first worker's device waited for batches: a CPU with its
            process; a GPU only if it had finished all earlier work, whether or not the process waited.
        forward_fraction: Fraction of the time that the first worker's device took for forward passes and losses, with
            the exchanges that they wait for; None: the run was made by an older version. So are the next two.
        backward_fraction: For backward passes, with what of the exchange of gradients is not hidden behind them.
        update_fraction: For the update of the weights and of batch normalisation's statistics.
        eta_seconds: Expected time to the end of the run, in seconds.
        losses: Loss of each step since the last line.
    """

    kind: ClassVar[str] = "step"
    step: int
    samples_seen: int
    epoch: float
    loss: float
    top1: float
    learning_rate: float
    images_per_second: float
    data_wait_fraction: float
    forward_fraction: float | None = None
    backward_fraction: float | None = None
    update_fraction: float | None = None
    eta_seconds: float
    losses: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Evaluated(Line):
    """An evaluation; repeated at the same step if a run was lost before the checkpoint that follows it.

    Attributes:
        step: Step after which the evaluation was made.
        split: Name of the split.
        num_samples: Samples of the split.
        loss: Mean loss over the samples.
        top1: Fraction of samples whose class was predicted.
        top5: Fraction of samples whose class was among the first five.
    """

    kind: ClassVar[str] = "evaluation"
    step: int
    split: str
    num_samples: int
    loss: float
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class Stalled(Line):
    """The error on `val` no longer falls: the schedule `plateau` reduces the learning rate or ends the run.

    Attributes:
        step: Step of the evaluation that showed the stall.
        num_reductions: Number of reductions of the rate so far.
        is_over: Whether the run ends.
    """

    kind: ClassVar[str] = "plateau"
    step: int
    num_reductions: int
    is_over: bool


@dataclass(frozen=True, kw_only=True)
class Warned(Line):
    """A warning for a person.

    Attributes:
        message: Text of the warning.
    """

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, kw_only=True)
class Resumed(Line):
    """The run resumes from a checkpoint; earlier lines of later steps no longer count.

    Attributes:
        step: Step of the checkpoint.
        num_rolled_back: Number of logged steps that are undone.
    """

    kind: ClassVar[str] = "resume"
    step: int
    num_rolled_back: int = 0  # runs of older versions do not say


@dataclass(frozen=True, kw_only=True)
class Aligned(Line):
    """The workers' weights differed by rounding, and all took the first worker's.

    Attributes:
        step: Step after which they were compared.
        num_tensors: Number of tensors that differed.
        largest: Largest deviation of a tensor, norm of the difference to norm.
    """

    kind: ClassVar[str] = "aligned"
    step: int
    num_tensors: int
    largest: float


@dataclass(frozen=True, kw_only=True)
class Stopped(Line):
    """The workers stopped at a checkpoint, as requested.

    Attributes:
        step: Step of the checkpoint.
    """

    kind: ClassVar[str] = "stop"
    step: int


@dataclass(frozen=True, kw_only=True)
class Failed(Line):
    """An error that a restart does not mend ended the training: it diverged, or nothing is learnt.

    Attributes:
        step: Latest step that was made; its losses are not logged.
        message: The error, for a person.
    """

    kind: ClassVar[str] = "failure"
    step: int
    message: str


@dataclass(frozen=True, kw_only=True)
class Launched(Line):
    """Workers are launched.

    Attributes:
        num_workers: Number of workers.
    """

    kind: ClassVar[str] = "launch"
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class Lost(Line):
    """Workers were lost.

    Attributes:
        cause: Cause of the loss, for a person.
        step: Step of the checkpoint that the run resumes from.
    """

    kind: ClassVar[str] = "lost"
    cause: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Changed(Line):
    """The run's operating settings change from here on.

    Attributes:
        changes: Dotted name of each field -> value before and value now.
    """

    kind: ClassVar[str] = "change"
    changes: Mapping[str, Sequence[Any]]

    def values(self) -> dict[str, Any]:
        """Return the changes; each one is a separate field of the line."""
        return dict(self.changes)


@dataclass(frozen=True, kw_only=True)
class Resizing(Line):
    """The workers are asked to stop, and will be launched again in another number.

    Attributes:
        num_workers: New number of workers.
    """

    kind: ClassVar[str] = "resize"
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class Stopping(Line):
    """A signal asked the run to stop."""

    kind: ClassVar[str] = "stop"


@dataclass(frozen=True, kw_only=True)
class Finished(Line):
    """The run is finished."""

    kind: ClassVar[str] = "finish"


METRICS_JSONL, LAUNCHES_JSONL = "metrics.jsonl", "launches.jsonl"
_METRICS: tuple[type[Line], ...] = (
    Started, DecodingChosen, ExchangeChosen, Steps, Evaluated, Stalled, Warned, Resumed, Aligned, Stopped, Failed
)  # fmt: skip
_LAUNCHES: tuple[type[Line], ...] = (Launched, Lost, Changed, Resizing, Stopping, Finished)
LineT = TypeVar("LineT", bound=Line)


class RunLog:
    """One of a run's logs, open for writing by this process alone; holding it open locks the run.

    Args:
        path: Path of the log.
        wait_seconds: Maximum time to wait for another process that still writes the log.

    Raises:
        InputError: Another process writes the log.
    """

    def __init__(self, path: Path, wait_seconds: float = 0.0) -> None:
        self._log = JsonLog(path, wait_seconds)

    def write(self, line: Line) -> None:
        """Append a line with the current time."""
        self._log.write(line.kind, **line.values())

    def close(self) -> None:
        """Close the file and release the lock."""
        self._log.close()


def read_metrics(path: Path) -> list[Line]:
    """Return the lines of a `metrics.jsonl` in order; none if the file does not exist.

    Lines that were torn by a kill, whose kind this version does not know, or that lack a field, are skipped.
    """
    return _read(path, parse_metrics_line)


def read_launches(path: Path) -> list[Line]:
    """Return the lines of a `launches.jsonl`; see `read_metrics`."""
    return _read(path, lambda text: _parse(text, _LAUNCHES))


def parse_metrics_line(text: bytes) -> Line | None:
    """Return a line of a `metrics.jsonl`, or None if it is torn or of an unknown kind."""
    return _parse(text, _METRICS)


def only(line_type: type[LineT], lines: Sequence[Line]) -> list[LineT]:
    """Return the lines of one kind, in order."""
    return [line for line in lines if isinstance(line, line_type)]


def _read(path: Path, parse: Callable[[bytes], Line | None]) -> list[Line]:
    if not path.exists():
        return []
    return [line for text in path.read_bytes().splitlines() if (line := parse(text)) is not None]


def _parse(text: bytes, known: tuple[type[Line], ...]) -> Line | None:
    try:
        document = json.loads(text)
        name, time = document.pop("kind"), document.pop("time", 0.0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    line_type = next((line_type for line_type in known if line_type.kind == name), None)
    if line_type is None:
        return None
    if line_type is Changed:
        return Changed(changes=document, time=time)
    names = {field.name for field in dataclasses.fields(line_type)}
    try:
        return line_type(**{name: value for name, value in document.items() if name in names}, time=time)
    except TypeError:  # a field is missing: another program wrote it
        return None
