"""Time of a step, by the wall clock and by the GPU's own clock. Without a GPU both use the wall clock."""

import statistics
import time
from collections.abc import Callable

import torch

_WARM_UP_STEPS = 3
_QUEUED_STEPS = 8  # between two readings of the clock; the CPU waits for the GPU before each


def synchronize() -> None:
    """Wait for the GPU if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_per_step(step: Callable[[], object], seconds: float, num_warm_up: int = _WARM_UP_STEPS) -> float:
    """Return the mean wall-clock seconds of a step; steps are queued without pauses, and waited for at the end.

    Args:
        step: Step to time.
        seconds: Time for which the step is repeated; 0: one warm-up step and one timed step.
        num_warm_up: Number of steps before the timed ones.
    """
    for _ in range(num_warm_up if seconds else 1):
        step()
    synchronize()
    began, count, elapsed = time.perf_counter(), 0, 0.0
    while not count or elapsed <= seconds:
        for _ in range(_QUEUED_STEPS if seconds else 1):
            step()
            count += 1
        synchronize()
        elapsed = time.perf_counter() - began
    return elapsed / count


def gpu_milliseconds(step: Callable[[], object], num_steps: int = 20) -> float:
    """Return the median milliseconds of a step by the GPU's own clock, without the work of the CPU."""
    if not torch.cuda.is_initialized():
        return 1000 * seconds_per_step(step, 0)
    for _ in range(_WARM_UP_STEPS):
        step()
    torch.cuda.synchronize()
    pairs = []
    for _ in range(num_steps):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        step()
        last.record()
        pairs.append((first, last))
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in pairs)
