"""How long batches hold up a worker's device."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from cluster.worker.device_clock import DeviceClock, Moment
from pipeline.loader import TrainLoader
from pipeline.online.synthetic_loader import SyntheticLoader

BatchT = TypeVar("BatchT")


class DataWait:
    """Measures how long the device waited for batches.

    On a CPU, this is the time that the loader made the process wait. A GPU lags behind the process: while the process
    waits for a batch, the GPU still computes the steps before. There, a wait lasts from the moment at which the GPU has
    finished all earlier work to the one at which it may begin with the new batch; it is 0 if the batch comes earlier.

    Args:
        loader: Loader of the batches, which counts the waits of the process.
        clock: Clock of the device.
    """

    def __init__(self, loader: TrainLoader | SyntheticLoader, clock: DeviceClock) -> None:
        self._clock = clock
        self._mark: Callable[[], Moment] = clock.mark if clock.lags else lambda: loader.data_wait_seconds
        self._waits: list[tuple[Moment, Moment]] = []

    def watch(self, batches: Iterator[BatchT]) -> Iterator[BatchT]:
        """Yield batches, and measure how long the device waits for each; the kernel that makes its images counts."""
        while True:
            before = self._mark()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waits.append((before, self._mark()))
            yield batch

    def take(self) -> list[tuple[Moment, Moment]]:
        """Return begin and end of each wait since the last call."""
        waits, self._waits = self._waits, []
        return waits

    def seconds(self, waits: list[tuple[Moment, Moment]]) -> float:
        """Return the length of waits whose ends the device has reached."""
        return sum(self._clock.seconds(begin, end) for begin, end in waits)
