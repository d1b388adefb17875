"""What stays the same along the axes of a scaling experiment: the model, its loader, and the part of a machine."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from cluster.exchange.cost import Traffic, Workload
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Row
from model.registry import ModelConfig, num_operations, outline_network

_FORWARD_AND_BACKWARD = 3  # operations of both passes, in those of the forward pass
_ACTIVATION_BYTES = {"bfloat16": 2, "float64": 8}


@dataclass(frozen=True, kw_only=True, order=True)
class Kind:
    """A cell without its numbers of workers and samples, its exchange and its link; see `Cell`."""

    model: str
    image_size: int
    num_classes: int
    precision: str
    loader: str = "synthetic"
    encoding: str = ""
    cpus_per_worker: float = 0.0

    @classmethod
    def of(cls, cell: Cell) -> "Kind":
        """Return a cell's or a row's kind."""
        return cls(**{field.name: getattr(cell, field.name) for field in dataclasses.fields(cls)})

    def __str__(self) -> str:
        """Describe it in a few words."""
        words = [self.model, f"{self.image_size} px", self.precision]
        words += [f"{self.encoding} pictures"] * (self.loader == "real")
        return ", ".join(words + [f"{self.cpus_per_worker:g} CPUs per worker"] * (self.cpus_per_worker > 0))

    @property
    def operations_per_sample(self) -> float:
        """Floating-point operations of a sample's forward and backward passes."""
        return _operations_per_sample(self.model, self.num_classes, self.image_size)

    def workload(self, global_batch_size: int) -> Workload:
        """Return what the model exchanges."""
        workload = _workload(self.model, self.num_classes, _ACTIVATION_BYTES.get(self.precision, 4))
        return dataclasses.replace(workload, global_batch_size=global_batch_size)

    def traffic(self, exchange: str, num_workers: int, global_batch_size: int) -> Traffic:
        """Return what a worker sends per step by an exchange of the table, exact or not."""
        workload = self.workload(global_batch_size)
        match exchange:
            case _ if exchange == NO_EXCHANGE or num_workers == 1:
                return Traffic()
            case "bf16":  # the buckets of float32, rounded when they leave
                traffic = workload.traffic("allreduce", num_workers)
                return dataclasses.replace(traffic, hidden_bytes=traffic.hidden_bytes / 2)
            case "allreduce" | "factors" | "hybrid":
                return workload.traffic(exchange, num_workers)
        raise ValueError(f"exchange={exchange!r}: must be none, bf16, allreduce, factors or hybrid")


def by_kind(rows: Iterable[Row]) -> dict[Kind, list[Row]]:
    """Return the rows of each kind."""
    found: dict[Kind, list[Row]] = {}
    for row in rows:
        found.setdefault(Kind.of(row), []).append(row)
    return dict(sorted(found.items()))


def samples_per_worker(cell: Cell) -> int:
    """Return the samples of the worker that has most."""
    return -(-cell.global_batch_size // cell.num_workers)


def exchange_ratio(cell: Cell, bytes_per_second: float, passes_seconds: float) -> float:
    """Return r: the time of all-reduce's bytes on a link over that of the forward and backward passes.

    Args:
        cell: Model, number of workers and batch, by any exchange.
        bytes_per_second: Bandwidth of the link by a sweep: what collective operations get of it.
        passes_seconds: Time of a step's forward and backward passes without an exchange.
    """
    traffic = Kind.of(cell).traffic("allreduce", cell.num_workers, cell.global_batch_size)
    return traffic.hidden_bytes / bytes_per_second / passes_seconds


@lru_cache(maxsize=64)
def _workload(model: str, num_classes: int, activation_bytes: int) -> Workload:
    network = outline_network(ModelConfig(name=model), num_classes=num_classes)
    return Workload.of(network, global_batch_size=1, activation_bytes=activation_bytes)


@lru_cache(maxsize=64)
def _operations_per_sample(model: str, num_classes: int, image_size: int) -> float:
    return float(_FORWARD_AND_BACKWARD * num_operations(ModelConfig(name=model), num_classes, image_size))
