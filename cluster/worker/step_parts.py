"""How long the parts of training steps take a worker's device."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cluster.worker.device_clock import DeviceClock, Moment
from pipeline.loader import TrainLoader
from pipeline.online.synthetic_loader import SyntheticLoader

DATA_WAIT = "data_wait"

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Span:
    """One time that a part took.

    Attributes:
        part: Name of the part.
        begin: Moment at which it began.
        end: Moment at which it ended.
    """

    part: str
    begin: Moment
    end: Moment


class StepParts:
    """Measures how long the device waits for batches, and how long it computes on each part of a step.

    On a CPU, a wait is the time that the loader made the process wait. A GPU lags behind the process: while the process
    waits for a batch, the GPU still computes the steps before. There, a wait lasts from the moment at which the GPU has
    finished all earlier work to the one at which it may begin with the new batch; it is 0 if the batch comes earlier.

    Args:
        loader: Loader of the batches, which counts the waits of the process.
        clock: Clock of the device.
    """

    def __init__(self, loader: TrainLoader | SyntheticLoader, clock: DeviceClock) -> None:
        self._clock = clock
        self._waited: Callable[[], Moment] = clock.mark if clock.lags else lambda: loader.data_wait_seconds
        self._spans: list[Span] = []

    def watch(self, batches: Iterator[BatchT]) -> Iterator[BatchT]:
        """Yield batches, and measure how long the device waits for each; the kernel that makes its images counts."""
        while True:
            before = self._waited()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._spans.append(Span(DATA_WAIT, before, self._waited()))
            yield batch

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block as a part of a step."""
        begin = self._clock.mark()
        yield
        self._spans.append(Span(name, begin, self._clock.mark()))

    def take(self) -> list[Span]:
        """Return the spans since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def seconds(self, spans: list[Span]) -> Mapping[str, float]:
        """Return the total length of spans whose ends the device has reached, by part; 0 for parts without any."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for span in spans:
            seconds[span.part] += self._clock.seconds(span.begin, span.end)
        return seconds
