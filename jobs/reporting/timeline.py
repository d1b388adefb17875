"""Workers over time, from a run's two logs: how many worked when, and what happened to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.run.run_log import (
    Aligned,
    Evaluated,
    Failed,
    Finished,
    Line,
    Lost,
    Resizing,
    Resumed,
    Stalled,
    Started,
    Steps,
    Stopped,
    only,
)

Kind = Literal["begin", "lost", "joined", "fewer", "resumed", "stop", "failed", "finish"]
# Lines that only workers at work write; a launch also writes warnings and what it resumes from before they start.
_SIGNS = (Started, Steps, Evaluated, Stalled, Aligned, Stopped, Failed)


@dataclass(frozen=True)
class Stretch:
    """Time in which one set of workers trained.

    Attributes:
        begin: Seconds since the run began.
        end: Seconds since the run began.
        num_workers: Number of workers.
    """

    begin: float
    end: float
    num_workers: int


@dataclass(frozen=True)
class Event:
    """What happened to the workers.

    Attributes:
        seconds: Seconds since the run began.
        kind: Kind of the event.
        text: The event in words.
        num_workers: Number of workers after it; 0 if none is left.
    """

    seconds: float
    kind: Kind
    text: str
    num_workers: int


@dataclass(frozen=True)
class Timeline:
    """Workers over time.

    Attributes:
        stretches: Times in which workers trained, in order.
        events: Events, in order.
        training_seconds: Time in which workers trained, evaluations included.
        wall_seconds: Time from the first line of both logs to the last.
    """

    stretches: Sequence[Stretch]
    events: Sequence[Event]
    training_seconds: float
    wall_seconds: float


def read_timeline(metrics: Sequence[Line], launches: Sequence[Line]) -> Timeline:
    """Read the timeline; it is empty if the logs have no times, as those of old versions."""
    lines = sorted((line for line in [*launches, *metrics] if line.time), key=lambda line: line.time)
    if not only(Started, lines):
        return Timeline([], [], 0.0, 0.0)
    zero = lines[0].time
    stretches = [Stretch(start.time - zero, end - zero, start.world_size) for start, end in _stretches(lines, metrics)]
    return Timeline(
        stretches=stretches,
        events=_events(lines, zero, stretches),
        training_seconds=sum(stretch.end - stretch.begin for stretch in stretches),
        wall_seconds=lines[-1].time - zero,
    )


def _stretches(lines: Sequence[Line], metrics: Sequence[Line]) -> list[tuple[Started, float]]:
    """Return each start of workers and the time of the last sign of them.

    That is their last line, or the loss that ended them if the log has it.
    """
    starts = only(Started, lines)
    found = []
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        limit = following.time if following else float("inf")
        own = [line.time for line in metrics if isinstance(line, _SIGNS) and start.time <= line.time < limit]
        ends = [line.time for line in only(Lost, lines) if start.time <= line.time < limit]
        found.append((start, max(own[-1:] + ends[:1])))
    return found


def _events(lines: Sequence[Line], zero: float, stretches: Sequence[Stretch]) -> list[Event]:
    """Return the events. Workers whose end no log has, as after a kill of everything, were lost at their last sign."""
    events: list[Event] = []
    before, is_resizing = 0, False
    working: Stretch | None = None
    remaining = iter(stretches)  # one per start

    def add(line: Line, kind: Kind, text: str, num_workers: int) -> None:
        events.append(Event(line.time - zero, kind, text, num_workers))

    for line in lines:
        if isinstance(line, Started) and working is not None:
            text = f"workers lost without notice; on from step {line.step:,}"
            events.append(Event(working.end, "lost", text, 0))
        match line:
            case Lost():
                add(line, "lost", f"workers lost: {line.cause}; on from step {line.step:,}", 0)
            case Started() if not before:
                add(line, "begin", _begin(line), line.world_size)
            case Started():
                difference = line.world_size - before
                kind: Kind = "joined" if difference > 0 else "fewer" if difference < 0 else "resumed"
                change = {
                    "joined": f"{difference} joined: {_workers(line.world_size)}",
                    "fewer": f"{_workers(line.world_size)}, {-difference} fewer",
                    "resumed": f"{_workers(line.world_size)} again",
                }[kind]
                add(line, kind, f"{change}, from step {line.step:,}", line.world_size)
            case Resizing():
                is_resizing = True
            case Stopped() if not is_resizing:
                add(line, "stop", f"stopped on request at step {line.step:,}", 0)
            case Failed():
                add(line, "failed", f"ended by an error at step {line.step:,}: {line.message}", 0)
            case Finished():
                add(line, "finish", "finished", 0)
        if isinstance(line, Started):
            before, is_resizing, working = line.world_size, False, next(remaining)
        elif isinstance(line, Lost | Resizing | Stopped | Failed | Finished):
            working = None
    return events


def _begin(start: Started) -> str:
    verb = "resume" if start.step else "begin"
    return f"{_workers(start.world_size)} {verb}{'s' * (start.world_size == 1)}"


def _workers(number: int) -> str:
    return f"{number} worker{'s' * (number != 1)}"


def most_workers(timeline: Timeline) -> int:
    """Return the largest number of workers that trained at a time."""
    return max((stretch.num_workers for stretch in timeline.stretches), default=0)


def rolled_back(metrics: Sequence[Line]) -> int:
    """Return the number of logged steps that resumes undid."""
    return sum(line.num_rolled_back for line in only(Resumed, metrics))
