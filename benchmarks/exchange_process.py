"""Training steps of several workers on noise. As a process of `benchmarks.exchange_*`: measure, and print JSON.

python -m benchmarks.exchange_process '{"exchange": "factors", "measured": "bytes", ...}', on a host of `cluster.lab`.

The workers are those of a run: the same `Learner` with the same exchange, in float32. Only the batches are made up.
"""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from cluster.exchange.collectives import leave_process_group
from cluster.exchange.dense_layers import dense_layers
from cluster.lab.host_workers import run_workers
from cluster.lab.hosts import Host, own_counters
from cluster.lab.scaling_table import NO_EXCHANGE, Cell
from cluster.scaling.experiment import ExchangeName
from cluster.scaling.steps import Training
from cluster.worker.allocator import ALLOCATOR_ENVIRONMENT
from cluster.worker.world import World
from pipeline.online.order import RankShare

_NUM_PRODUCTS = 3
_TIMEOUT_SECONDS = 1800.0
_SETTLE_SECONDS = 0.2  # in which the last bytes leave


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the workers do.

    Attributes:
        exchange: ExchangeName of the exchange.
        measured: `bytes` that leave a worker per step, or `times` of a step.
        model: Name of the model.
        image_size: Height and width of the pictures.
        num_classes: Number of classes.
        global_batch_size: Samples per step over all workers.
        num_steps: Number of steps that count, after those of the warm-up.
        num_warm_up_steps: Number of steps before; after its first, DistributedDataParallel orders its buckets anew.
    """

    exchange: ExchangeName
    measured: Literal["bytes", "times"]
    model: str = "alexnet_2012"
    image_size: int = 224
    num_classes: int = 1000
    global_batch_size: int = 128
    num_steps: int = 3
    num_warm_up_steps: int = 2

    def cell(self, num_workers: int) -> Cell:
        """Return it as a cell of a scaling experiment."""
        return Cell(
            model=self.model,
            image_size=self.image_size,
            num_classes=self.num_classes,
            precision="float32",
            num_workers=num_workers,
            global_batch_size=self.global_batch_size,
            exchange=self.exchange,
        )


def run_case(case: Case, lab: Sequence[Host]) -> dict[str, Any]:
    """Measure with a worker on each host, and return what the first prints; see `measure_bytes`, `measure_times`."""
    command = ["-m", "benchmarks.exchange_process", json.dumps(asdict(case))]
    return dict(json.loads(run_workers(lab, command, ALLOCATOR_ENVIRONMENT, _TIMEOUT_SECONDS)))


def measure_bytes(case: Case) -> dict[str, Any]:
    """Return the bytes that each worker's interface sent, by rank, and of them those that leave it when it idles."""
    training = _training(case, case.exchange)
    for _ in range(case.num_warm_up_steps):
        training.step()

    def sent(action: Callable[[], object]) -> tuple[int, int, float]:
        dist.barrier()
        time.sleep(_SETTLE_SECONDS)
        began, before = time.monotonic(), own_counters()
        action()
        time.sleep(_SETTLE_SECONDS)
        after = own_counters()
        return after.sent_bytes - before.sent_bytes, after.wire_bytes - before.wire_bytes, time.monotonic() - began

    def steps() -> None:
        for _ in range(case.num_steps):
            training.step()

    busy_bytes, busy_wire_bytes, seconds = sent(steps)
    idle_bytes, idle_wire_bytes, _ = sent(lambda: time.sleep(seconds - _SETTLE_SECONDS))
    own = {
        "bytes_per_step": (busy_bytes - idle_bytes) / case.num_steps,
        "wire_bytes_per_step": (busy_wire_bytes - idle_wire_bytes) / case.num_steps,
        "idle_bytes_per_second": idle_bytes / seconds,
    }
    return _by_rank(own)


def measure_times(case: Case) -> dict[str, Any]:
    """Return medians of a step's times, each of the slowest worker, with the exchange and without, in turn."""
    exchanging, alone = _training(case, case.exchange), _training(case, NO_EXCHANGE)
    rows: list[dict[str, float]] = []
    for number in range(case.num_warm_up_steps + case.num_steps):
        row = {}
        for name, training in (("", exchanging), ("alone_", alone)):
            watch = training.step()
            row[f"{name}step_seconds"] = watch.step_seconds
            row[f"{name}update_seconds"] = watch.update_seconds
            row[f"{name}blocked_seconds"] = watch.blocked_seconds
        row["extra_seconds"] = _seconds_of_others_products(case, alone.learner.model)
        if number >= case.num_warm_up_steps:
            rows.append(row)
    slowest = [{name: max(values) for name, values in _by_rank(row).items()} for row in rows]
    return {name: median(row[name] for row in slowest) for name in slowest[0]}


def _training(case: Case, exchange: str) -> Training:
    """Return this worker's steps of a case, with another exchange."""
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    cell = dataclasses.replace(case.cell(world.world_size), exchange=exchange)
    return Training(cell, world, case.num_steps + case.num_warm_up_steps)


def _seconds_of_others_products(case: Case, model: nn.Module) -> float:
    """Return the time of the products that give the dense gradients of the other workers' samples.

    All workers time them at once: those of the whole batch less those of this worker's part, the shortest of a few.
    """
    share = RankShare(case.global_batch_size, dist.get_rank(), dist.get_world_size())
    begin, end = share.range_from(0)
    size = case.global_batch_size
    factors = [
        (torch.randn(size, layer.out_features), torch.randn(size, layer.in_features))
        for layer in dense_layers(model).values()
    ]
    shortest = {size: math.inf, end - begin: math.inf}
    for _ in range(_NUM_PRODUCTS):
        for num_rows in shortest:
            dist.barrier()
            began = time.perf_counter()
            for slopes, inputs in factors:
                slopes[:num_rows].T @ inputs[:num_rows]
            shortest[num_rows] = min(shortest[num_rows], time.perf_counter() - began)
    return shortest[size] - shortest[end - begin]


def _by_rank(own: Mapping[str, float]) -> dict[str, list[float]]:
    """Return all workers' values."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, dict(own))
    return {name: [values[name] for values in gathered] for name in own}


def main() -> None:
    """Measure as a worker."""
    case = Case(**json.loads(sys.argv[1]))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo")
    measured = (measure_bytes if case.measured == "bytes" else measure_times)(case)
    dist.barrier()
    leave_process_group()
    if int(os.environ["RANK"]) == 0:
        sys.stdout.write(json.dumps(measured))


if __name__ == "__main__":
    main()
