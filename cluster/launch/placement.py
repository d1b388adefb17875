"""How many workers there are and what each of them gets, from what the nodes have."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.command import InputError

Strategy = Literal["pack", "spread"]


class NoPlacement(InputError):
    """The nodes can't hold the workers now; they may at another moment, or hold fewer workers."""


@dataclass(frozen=True)
class WorkerRange:
    """How many workers a run may have.

    Attributes:
        least: Smallest number; with fewer the run waits.
        most: Largest number.
    """

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "WorkerRange":
        """Read `4`, or `2:8`.

        Raises:
            InputError: It is neither.
        """
        least, colon, most = text.partition(":")
        try:
            workers = cls(int(least), int(most if colon else least))
        except ValueError as error:
            raise InputError(f"--workers is {text}; it must be a number (4), or a least and a most (2:8)") from error
        if not 1 <= workers.least <= workers.most:
            raise InputError(f"--workers is {text}; it must be at least 1, and the least not above the most")
        return workers


@dataclass(frozen=True)
class Placement:
    """What a launch asks for.

    Attributes:
        num_workers: Number of training processes.
        cpus_per_worker: CPUs reserved for each worker; may be a fraction.
        gpus_per_worker: 1 where the cluster has GPUs, else 0.
        strategy: `pack` fills a node before it takes the next one; `spread` gives each node its share.
        node_ids: Ids of the nodes that may get a worker; None: all may.
    """

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: int
    strategy: Strategy = "pack"
    node_ids: tuple[str, ...] | None = None

    @property
    def num_threads(self) -> int:
        """Threads of each worker."""
        return max(1, int(self.cpus_per_worker))

    def __str__(self) -> str:
        """Say it in words."""
        each = f"{self.cpus_per_worker:g} CPU" + (" and a GPU" if self.gpus_per_worker else "")
        return f"{self.num_workers} worker{'s' * (self.num_workers > 1)} of {each}"


# Returns how to place workers on nodes of such resources; raises NoPlacement where they can't hold enough.
Place = Callable[[Sequence[Mapping[str, float]]], Placement]


def place_workers(
    nodes: Sequence[Mapping[str, float]],
    workers: WorkerRange | None,
    requested_cpus: float | None,
    strategy: Strategy = "pack",
) -> Placement:
    """Return how to place as many workers as allowed: a GPU each where the cluster has GPUs, else CPUs alone.

    Args:
        nodes: Ray resources of each node.
        workers: Numbers allowed; None: one per GPU, or one per node where there is none.
        requested_cpus: CPUs of each worker; None: as many as fit.
        strategy: See `Placement`.

    Raises:
        NoPlacement: The cluster can't hold them.
        InputError: The CPUs requested are no number above 0.
    """
    num_gpus = int(sum(resources.get("GPU", 0) for resources in nodes))
    # A worker lies on one node: one without GPUs holds none where the cluster has some.
    holders = [
        Holder(resources.get("CPU", 0.0), int(resources.get("GPU", 0)) if num_gpus else None) for resources in nodes
    ]
    if workers is None:
        usual = max(1, num_gpus or sum(holder.num_cpus >= 1 for holder in holders))
        workers = WorkerRange(usual, usual)
    if num_gpus and workers.least > num_gpus:
        raise NoPlacement(
            f"{workers.least} workers need a GPU each, the cluster has {num_gpus}; use --workers {num_gpus}"
        )
    num_workers = max(workers.least, min(workers.most, _num_places(holders, requested_cpus or 1.0)))
    return Placement(num_workers, cpus_per_worker(holders, num_workers, requested_cpus), min(num_gpus, 1), strategy)


@dataclass(frozen=True)
class Holder:
    """A node as a place for workers.

    Attributes:
        num_cpus: CPUs on the node.
        num_gpus: GPUs on the node, one for each worker; None: workers take none.
    """

    num_cpus: float
    num_gpus: int | None = None

    def num_places(self, cpus: float) -> int:
        """Return how many workers of so many CPUs it holds."""
        num_places = math.floor(self.num_cpus / cpus + 1e-9)
        return num_places if self.num_gpus is None else min(num_places, self.num_gpus)


def cpus_per_worker(holders: Sequence[Holder], num_workers: int, requested: float | None) -> float:
    """Return the CPUs to reserve for each worker.

    Args:
        holders: The nodes.
        num_workers: Number of workers to place; each lies on one node.
        requested: CPUs of each worker; None: the largest whole number with which all workers fit.

    Raises:
        NoPlacement: The cluster can't hold the workers; names a request that it can.
        InputError: The CPUs requested are no number above 0.
    """
    if requested is not None:
        if not requested > 0:
            raise InputError(f"--cpus-per-worker is {requested:g}; it must be above 0")
        if _num_places(holders, requested) >= num_workers:
            return requested
    else:
        for cpus in range(int(max((holder.num_cpus for holder in holders), default=0)), 0, -1):
            if _num_places(holders, cpus) >= num_workers:
                return float(cpus)
    each = 1.0 if requested is None else requested
    total, fits = sum(holder.num_cpus for holder in holders), _num_places(holders, each)
    wishes = f"{num_workers} workers of {each:g} CPU" + ("s" if each != 1 else "")
    raise NoPlacement(
        f"the cluster can't hold {wishes}: it has {total:g} CPUs on {len(holders)} node(s); "
        f"use --workers {max(fits, 1)}, or --cpus-per-worker {_largest_share(holders, num_workers):g}"
    )


def _num_places(holders: Sequence[Holder], cpus: float) -> int:
    return sum(holder.num_places(cpus) for holder in holders)


def _largest_share(holders: Sequence[Holder], num_workers: int) -> float:
    """Return the largest share of CPUs, rounded down to a multiple of 0.01, with which all workers fit."""
    candidates = (
        holder.num_cpus / count for holder in holders if holder.num_cpus > 0 for count in range(1, num_workers + 1)
    )
    best = max((share for share in candidates if _num_places(holders, share) >= num_workers), default=0.01)
    return max(0.01, math.floor(best * 100 + 1e-9) / 100)
