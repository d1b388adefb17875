"""Training steps of several workers on noise. As a process of `benchmarks.exchange_*`: measure, and print JSON.

python -m benchmarks.exchange_process '{"exchange": "factors", "measured": "bytes", ...}', on a host of `cluster.lab`.

The workers are those of a run: the same `Learner` with the same exchange, in float32. Only the batches are made up.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.exchange_watch import Watch
from cluster.exchange.base import Exchange
from cluster.exchange.bf16 import Bf16
from cluster.exchange.collectives import leave_process_group
from cluster.exchange.cost import Workload
from cluster.exchange.dense_layers import dense_layers
from cluster.exchange.lossy_cost import bf16_bytes
from cluster.exchange.names import Strategy
from cluster.lab.host_workers import run_workers
from cluster.lab.hosts import Host, own_counters
from cluster.run.config import TrainingConfig
from cluster.worker.allocator import ALLOCATOR_ENVIRONMENT
from cluster.worker.exchanges import EXACT
from cluster.worker.learner import Learner
from cluster.worker.world import World
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig, num_operations, outline_network
from pipeline.online.batch import LoaderConfig
from pipeline.online.order import RankShare
from pipeline.online.synthetic_loader import SyntheticLoader

Name = Strategy | Literal["bf16"]
_FORWARD_AND_BACKWARD = 3  # operations of both passes, in those of the forward pass
_NUM_PRODUCTS = 3
_TIMEOUT_SECONDS = 1800.0
_SETTLE_SECONDS = 0.2  # in which the last bytes leave


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the workers do.

    Attributes:
        exchange: Name of the exchange.
        measured: `bytes` that leave a worker per step, or `times` of a step.
        model: Name of the model.
        image_size: Height and width of the pictures.
        num_classes: Number of classes.
        global_batch_size: Samples per step over all workers.
        num_steps: Number of steps that count, after those of the warm-up.
        num_warm_up_steps: Number of steps before; after its first, DistributedDataParallel orders its buckets anew.
    """

    exchange: Name
    measured: Literal["bytes", "times"]
    model: str = "alexnet_2012"
    image_size: int = 224
    num_classes: int = 1000
    global_batch_size: int = 128
    num_steps: int = 3
    num_warm_up_steps: int = 2

    @property
    def model_config(self) -> ModelConfig:
        """Configuration of the model."""
        return ModelConfig(name=self.model)

    @property
    def config(self) -> TrainingConfig:
        """Recipe."""
        return TrainingConfig(
            name="exchange",
            model=self.model_config,
            optimizer=OptimizerConfig(learning_rate=1e-4),
            global_batch_size=self.global_batch_size,
            num_epochs=1,
            precision="float32",
            synthetic_data=True,
        )

    @cached_property
    def network(self) -> nn.Module:
        """The model's shapes, without weights."""
        return outline_network(self.model_config, num_classes=self.num_classes)

    @cached_property
    def workload(self) -> Workload:
        """What the model exchanges."""
        return Workload.of(self.network, self.global_batch_size)

    @cached_property
    def num_operations(self) -> int:
        """Floating-point operations of a step of all workers, without an exchange and the update."""
        per_sample = num_operations(self.model_config, self.num_classes, self.image_size)
        return _FORWARD_AND_BACKWARD * self.global_batch_size * per_sample


class NoExchange(Exchange):
    """No exchange: each worker's gradient is that of its own samples, as large as that of all would be."""

    name = "none"

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model

    @property
    def loss_scale(self) -> float:
        """Factor w / G."""
        return self.world_size / self.share.global_batch_size

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        """Return an empty context."""
        return contextlib.nullcontext()


class Training:
    """One worker's steps with an exchange."""

    def __init__(self, case: Case, make_exchange: Callable[[RankShare], Exchange]) -> None:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        size = case.global_batch_size
        world = World(rank, world_size, torch.device("cpu"))
        self.learner = Learner(case.config, case.num_classes, case.num_steps + case.num_warm_up_steps, world)
        self.learner.connect(make_exchange(RankShare(size, rank, world_size)))
        self._loader = SyntheticLoader(
            num_samples=size,
            num_classes=case.num_classes,
            crop_size=case.image_size,
            global_batch_size=size,
            rank=rank,
            world_size=world_size,
            config=LoaderConfig(layout="NHWC"),
        )
        self._samples_seen, self._size = 0, size

    def step(self) -> None:
        """Make a step."""
        self.learner.step([next(self._loader)], self._samples_seen, 0)
        self._samples_seen += self._size


def make_exchange(name: Name) -> Callable[[RankShare], Exchange]:
    """Return the function that makes an exchange."""
    return Bf16 if name == "bf16" else EXACT[name]


def run_case(case: Case, lab: Sequence[Host]) -> dict[str, Any]:
    """Measure with a worker on each host, and return what the first prints; see `measure_bytes`, `measure_times`."""
    command = ["-m", "benchmarks.exchange_process", json.dumps(asdict(case))]
    return dict(json.loads(run_workers(lab, command, ALLOCATOR_ENVIRONMENT, _TIMEOUT_SECONDS)))


def num_bytes(case: Case, num_workers: int) -> float:
    """Return the bytes that a worker sends per step by the exchange's formula."""
    if case.exchange == "bf16":
        return bf16_bytes(case.network, num_workers)
    return case.workload.num_bytes(case.exchange, num_workers)


def measure_bytes(case: Case) -> dict[str, Any]:
    """Return the bytes that each worker's interface sent, by rank, and of them those that leave it when it idles."""
    training = Training(case, make_exchange(case.exchange))
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
    exchanging, alone = Training(case, make_exchange(case.exchange)), Training(case, NoExchange)
    rows: list[dict[str, float]] = []
    for number in range(case.num_warm_up_steps + case.num_steps):
        row = {}
        for name, training in (("", exchanging), ("alone_", alone)):
            dist.barrier()
            with Watch(training.learner) as watch:
                training.step()
            row[f"{name}step_seconds"] = watch.step_seconds
            row[f"{name}update_seconds"] = watch.update_seconds
            row[f"{name}blocked_seconds"] = watch.blocked_seconds
        row["extra_seconds"] = _seconds_of_others_products(case, alone.learner.model)
        if number >= case.num_warm_up_steps:
            rows.append(row)
    slowest = [{name: max(values) for name, values in _by_rank(row).items()} for row in rows]
    return {name: median(row[name] for row in slowest) for name in slowest[0]}


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
