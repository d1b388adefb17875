"""Measures the link between the hosts of a lab by all-reduces of 64 kB to 64 MB, and fits its model to the times.

The model is seconds = latency + bytes / bandwidth, with the bytes that a worker sends. A link is accepted if that fits
each size within 5 %. Each size is sent again and again without a pause, since a link's token bucket fills up in one.
As a process on each host, `python -m cluster.lab.link_sweep` measures, and prints the times as JSON.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import torch.distributed as dist

from cluster.exchange.collectives import leave_process_group
from cluster.exchange.cost import Link, fraction_sent
from cluster.lab.host_workers import run_workers
from cluster.lab.hosts import Hosts
from pipeline.command import InputError

LARGEST_DEVIATION = 0.05
_SIZES = tuple(64_000 * 4**power for power in range(6))  # bytes of the reduced tensor: 64 kB, ..., 65.5 MB
_SENT_BEFORE, _SENT_AT_LEAST = 2 << 20, 16 << 20  # bytes: to empty the bucket, and to time
_FEWEST = 3  # all-reduces of a size
_TRIALS = 3
_TIMEOUT_SECONDS = 300.0


class LinkDoesNotFitError(InputError):
    """A link does not fit its model, so that nothing measured on it can be told from other effects."""


@dataclass(frozen=True)
class LinkFit:
    """A link by its model.

    Attributes:
        link: Latency and bandwidth.
        largest_deviation: Of a predicted time from the measured one, relative, over all sizes.
    """

    link: Link
    largest_deviation: float

    @property
    def is_accepted(self) -> bool:
        """Whether the model fits well enough for measurements that rely on it."""
        return self.largest_deviation <= LARGEST_DEVIATION


def fit_link(sent_bytes: Sequence[float], seconds: Sequence[float]) -> LinkFit:
    """Fit the model with the least sum of squared relative deviations.

    Args:
        sent_bytes: Bytes that each worker sent, at least two different sizes.
        seconds: Time of each.
    """
    sent_S, seconds_S = np.array(sent_bytes, np.float64), np.array(seconds, np.float64)
    terms_S2 = np.stack([np.ones_like(sent_S), sent_S], 1) / seconds_S[:, None]
    (latency, slope), *_ = np.linalg.lstsq(terms_S2, np.ones_like(sent_S), rcond=None)
    if latency < 0:
        latency, slope = 0.0, terms_S2[:, 1].sum() / (terms_S2[:, 1] ** 2).sum()
    deviations_S = np.abs((latency + slope * sent_S) / seconds_S - 1)
    return LinkFit(Link(float(latency), 1 / float(slope)), float(deviations_S.max()))


def sweep_link(lab: Hosts) -> LinkFit:
    """Measure the link between a lab's hosts, as it is shaped now.

    Raises:
        InputError: There is a single host, or a worker failed.
    """
    if len(lab) < 2:
        raise InputError("a link is measured between at least 2 hosts")
    seconds = json.loads(run_workers(lab, ["-m", "cluster.lab.link_sweep"], timeout=_TIMEOUT_SECONDS))
    return fit_link([_sent_bytes(size, len(lab)) for size in _SIZES], seconds)


def accepted_link(lab: Hosts) -> LinkFit:
    """Measure the link, again if the model does not fit: another program may have disturbed it.

    Raises:
        LinkDoesNotFitError: The model does not fit in any trial.
        InputError: There is a single host, or a worker failed.
    """
    fits = []
    for _ in range(_TRIALS):
        fits.append(sweep_link(lab))
        if fits[-1].is_accepted:
            return fits[-1]
    best = min(fit.largest_deviation for fit in fits)
    raise LinkDoesNotFitError(
        f"the link does not fit latency + bytes / bandwidth within {LARGEST_DEVIATION:.0%} ({best:.1%} at best); end "
        "other programs on this machine, or choose a slower link"
    )


def _sent_bytes(size: int, world_size: int) -> float:
    """Return the bytes that each worker sends in an all-reduce of a tensor of `size` bytes, in a ring."""
    return 2 * fraction_sent(world_size) * size


def _seconds(size: int) -> float:
    """Return the median time of an all-reduce of a tensor of `size` bytes; every worker calls this."""
    tensor = torch.zeros(size // 4)
    sent = _sent_bytes(size, dist.get_world_size())
    for _ in range(int(_SENT_BEFORE // sent)):
        dist.all_reduce(tensor)
    seconds = []
    for _ in range(max(_FEWEST, int(_SENT_AT_LEAST // sent))):
        began = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def main() -> None:
    """Measure as a worker."""
    # The link is measured, not the wait for a core: with several hosts' threads on it, each hand-over may take 4 ms.
    with contextlib.suppress(PermissionError):  # root in a container may lack the right
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    dist.init_process_group("gloo")
    seconds = [_seconds(size) for size in _SIZES]
    sys.stdout.write(json.dumps(seconds))
    leave_process_group()


if __name__ == "__main__":
    main()
