"""Moments of a worker's computation, on a CPU and on a GPU, which lags behind the process that gives it work.

A moment on a GPU is an event: the GPU reaches it after all work given to it before. Marking one never waits; what lies
between two moments is read later.
"""

import time
from typing import Protocol

import torch

Moment = float | torch.cuda.Event


class DeviceClock(Protocol):
    """Marks moments, and measures between them.

    Attributes:
        lags: Whether the device may reach a moment long after it was marked.
    """

    lags: bool

    def mark(self) -> Moment:
        """Return the moment at which the device has finished the work given to it so far."""

    def wait(self, moment: Moment) -> None:
        """Wait until the device has reached a moment."""

    def seconds(self, first: Moment, second: Moment) -> float:
        """Return the time between two moments that the device has reached."""


class CpuClock:
    """The clock of a CPU, whose work is done when a call returns."""

    lags = False

    def mark(self) -> Moment:
        """See `DeviceClock`."""
        return time.perf_counter()

    def wait(self, moment: Moment) -> None:
        """See `DeviceClock`."""

    def seconds(self, first: Moment, second: Moment) -> float:
        """See `DeviceClock`."""
        assert isinstance(first, float) and isinstance(second, float)
        return second - first


class CudaClock:
    """The clock of a GPU's current stream.

    Args:
        device: The GPU, which need not be the current one.
    """

    lags = True

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Moment:
        """See `DeviceClock`."""
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # blocking: a thread that waits takes no core
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, moment: Moment) -> None:
        """See `DeviceClock`."""
        assert not isinstance(moment, float)
        moment.synchronize()

    def seconds(self, first: Moment, second: Moment) -> float:
        """See `DeviceClock`."""
        assert not isinstance(first, float) and not isinstance(second, float)
        return first.elapsed_time(second) / 1000


def clock_of(device: torch.device) -> DeviceClock:
    """Return the clock of a worker's device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()
