"""A short measurement of the link between the workers."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from cluster.exchange.cost import Link, fraction_sent

_SMALL_BYTES, _NUM_SMALL = 1024, 5
_LARGE_BYTES = (2**20, 16 * 2**20)  # the second only if, by the first, it takes no longer than the time below
_NUM_LARGE, _LARGE_SECONDS = 3, 0.25


def measure_link(device: torch.device) -> Link:
    """Measure the link by all-reduces; every worker calls this and gets the same answer.

    The shortest of several times counts, since other traffic can make an exchange slower but never faster.

    Args:
        device: Device of the model, whose network is measured.
    """
    latency, world_size = _shortest(device, _SMALL_BYTES, _NUM_SMALL), dist.get_world_size()
    for num_bytes in _LARGE_BYTES:
        seconds = _shortest(device, num_bytes, _NUM_LARGE)
        bytes_per_second = 2 * fraction_sent(world_size) * num_bytes / max(seconds - latency, seconds / 10)
        if _LARGE_BYTES[-1] / bytes_per_second > _LARGE_SECONDS:
            break
    return Link(latency, bytes_per_second)


def slowest(seconds: float) -> float:
    """Return the longest of all workers' times; every worker calls this."""
    times = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return float(times)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work on a device takes."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _shortest(device: torch.device, num_bytes: int, num_times: int) -> float:
    values = torch.zeros(num_bytes // 4, device=device)

    def exchange() -> float:
        slowest(0.0)  # all begin together
        return slowest(timed(lambda: dist.all_reduce(values), device))

    exchange()  # the first makes connections
    return min(exchange() for _ in range(num_times))
