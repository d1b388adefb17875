"""The parts of a step are measured on the device; a wait for data counts as far as it holds up the device."""

import time

import pytest
import torch
from gpu_timeline import Timeline

from cluster.worker.device_clock import CpuClock, CudaClock, clock_of
from cluster.worker.step_parts import DATA_WAIT, StepParts

GPU = torch.device("cuda", 0)


class Loader:
    """Hands out batches that become ready at given times."""

    def __init__(self, timeline: Timeline, ready: list[float]) -> None:
        self._timeline, self._ready = timeline, iter(ready)
        self.data_wait_seconds = 0.0

    def __iter__(self):
        return self

    def __next__(self) -> float:
        ready = next(self._ready)
        waited = max(0.0, ready - self._timeline.now)
        self._timeline.now += waited
        self.data_wait_seconds += waited
        return ready


def _waits(monkeypatch, ready: list[float], clock, step_seconds: float = 1.0) -> tuple[float, float]:
    """Return how long a device whose steps take `step_seconds` waited, and how long the process did."""
    timeline = Timeline(monkeypatch)
    loader = Loader(timeline, ready)
    parts = StepParts(loader, clock)
    for _ in parts.watch(loader):
        timeline.work(step_seconds)  # given to the device in no time
    timeline.now += 100
    return parts.seconds(parts.take())[DATA_WAIT], loader.data_wait_seconds


def test_a_process_that_waits_ahead_of_its_gpu_holds_up_nothing(monkeypatch):
    # Batches come as fast as steps are made: the process waits all the time, the GPU for the first batch alone.
    device, process = _waits(monkeypatch, [0.5, 1.0, 2.0, 3.0, 4.0], CudaClock(GPU))
    assert (device, process) == (pytest.approx(0.5), pytest.approx(4.0))


def test_a_gpu_waits_for_what_comes_after_its_work_was_done(monkeypatch):
    # Steps end at 1, 3 (begun at 2) and 5.5 (begun at 4.5): the batches of 2 and 4.5 came 1 and 1.5 seconds late.
    device, _ = _waits(monkeypatch, [0.0, 2.0, 4.5], CudaClock(GPU))
    assert device == pytest.approx(1 + 1.5)


def test_on_a_cpu_the_loaders_own_count_is_taken(monkeypatch):
    assert _waits(monkeypatch, [0.0, 2.0, 4.5], CpuClock()) == (4.5, 4.5)


def test_waits_are_taken_once(monkeypatch):
    loader = Loader(Timeline(monkeypatch), [3.0, 5.0])
    parts = StepParts(loader, CpuClock())
    batches = parts.watch(loader)
    next(batches)
    assert parts.seconds(parts.take())[DATA_WAIT] == 3.0
    next(batches)
    assert parts.seconds(parts.take())[DATA_WAIT] == 2.0 and parts.take() == []


@pytest.mark.parametrize("clock", [CpuClock(), CudaClock(GPU)])
def test_each_part_has_the_time_of_its_device(monkeypatch, clock):
    timeline = Timeline(monkeypatch)
    monkeypatch.setattr(time, "perf_counter", lambda: timeline.now)
    parts = StepParts(Loader(timeline, []), clock)
    for name, seconds in (("forward", 1.0), ("backward", 2.0), ("forward", 4.0)):
        with parts.part(name):
            if clock.lags:
                timeline.work(seconds)
            else:
                timeline.now += seconds
    timeline.now += 100
    found = parts.seconds(parts.take())
    assert found == {"forward": pytest.approx(5.0), "backward": pytest.approx(2.0)}
    assert found["update"] == 0


def test_a_gpu_has_a_clock_of_events():
    assert isinstance(clock_of(GPU), CudaClock)
    assert isinstance(clock_of(torch.device("cpu")), CpuClock)


@pytest.mark.gpu
def test_a_gpu_waits_only_when_it_has_no_work():
    clock = CudaClock(GPU)

    def batches():
        yield 0
        time.sleep(0.1)  # while the GPU works
        yield 1
        torch.cuda.synchronize()
        time.sleep(0.2)
        yield 2

    torch.cuda._sleep(1)  # loads the kernel
    torch.cuda.synchronize()
    parts = StepParts(Loader(None, []), clock)
    for number in parts.watch(batches()):
        if number == 0:
            torch.cuda._sleep(10**9)  # about half a second
    torch.cuda.synchronize()
    _, while_it_worked, without_work = [clock.seconds(wait.begin, wait.end) for wait in parts.take()]
    assert while_it_worked < 0.05 and without_work > 0.15
