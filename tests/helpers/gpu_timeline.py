"""A GPU that exists on paper: work queues up, and events are reached when the work before them is done."""

import pytest
import torch


class Timeline:
    """The times of a process and of the GPU that it gives work to; takes the place of torch's events.

    Attributes:
        now: Time of the process.
        num_waits: How often the process waited for the GPU.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._free, self.num_waits = 0.0, 0.0, 0
        monkeypatch.setattr(torch.cuda, "Event", lambda **options: _Event(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)

    def work(self, seconds: float) -> None:
        """Give the GPU work; it begins when it is free."""
        self._free = max(self.now, self._free) + seconds

    def reach(self) -> float:
        """Return when the GPU reaches what it is given now."""
        return max(self.now, self._free)


class _Event:
    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def record(self, stream: torch.device) -> None:
        assert stream.type == "cuda"
        self.reached = self._timeline.reach()

    def synchronize(self) -> None:
        self._timeline.num_waits += self._timeline.now < self.reached
        self._timeline.now = max(self._timeline.now, self.reached)

    def elapsed_time(self, end: "_Event") -> float:
        assert end.reached <= self._timeline.now, "the GPU has not reached the event"
        return 1000 * (end.reached - self.reached)
