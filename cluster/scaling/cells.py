"""The cells of an experiment, what they cost by the formulas, and the random order in which a block measures them."""

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cluster.exchange.cost import Workload
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Loader
from cluster.scaling.experiment import Experiment
from model.registry import ModelConfig, num_operations, outline_network

_FORWARD_AND_BACKWARD = 3  # operations of both passes, in those of the forward pass
_ACTIVATION_BYTES = {"bfloat16": 2}

Links = Mapping[Cell, Sequence[float]]
"""Bandwidths in Gbit/s for each cell without exchange, for `Experiment.like`."""


@dataclass
class Plan:
    """What an experiment measures.

    Attributes:
        cells: Its cells.
        left_out: What is not measured, since it would be nothing else; one line per cause.
        refused: Links whose cells are not measured, and why.
    """

    cells: list[Cell] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def computation_cells(experiment: Experiment, encodings: Sequence[str], num_classes: int) -> list[Cell]:
    """Return the cells without an exchange, which all others are compared with.

    Args:
        experiment: The declaration.
        encodings: Encodings of the datasets, for the loader `real`.
        num_classes: Number of classes.
    """
    loaders: list[tuple[Loader, str]] = []
    for loader in experiment.loaders:
        loaders += [(loader, "")] if loader == "synthetic" else [(loader, encoding) for encoding in encodings]
    return sorted(
        {
            Cell(
                model=model,
                image_size=image_size,
                num_classes=num_classes,
                precision=precision,
                loader=loader,
                encoding=encoding,
                num_workers=num_workers,
                global_batch_size=batch,
                exchange=NO_EXCHANGE,
                cpus_per_worker=experiment.cpus_per_worker or 0.0,
            )
            for model, image_size in experiment.sized_models
            for precision in experiment.precisions
            for loader, encoding in loaders
            for num_workers in experiment.workers
            for batch in _global_batches(experiment, num_workers)
        }
    )


def make_plan(experiment: Experiment, computations: Iterable[Cell], links: Links | None = None) -> Plan:
    """Return all cells of an experiment.

    Args:
        experiment: The declaration.
        computations: The cells without an exchange.
        links: Bandwidths for each of them; None: those of the experiment.
    """
    plan, left_out = Plan(), dict[str, None]()
    for alone in computations:
        group_size = ModelConfig(name=alone.model).group_size
        if alone.global_batch_size % group_size or alone.global_batch_size // group_size < alone.num_workers:
            groups = "" if group_size == 1 else f" in groups of {group_size}"
            left_out[
                f"{alone.model} on {alone.num_workers} workers: a batch of {alone.global_batch_size} can't be shared "
                f"by so many{groups}"
            ] = None
            continue
        plan.cells.append(alone)
        different = {*workload_of(alone).choices(alone.num_workers), "bf16"}
        for exchange in experiment.exchanges:
            if alone.num_workers == 1:
                left_out["1 worker: exchanges nothing, so it has the cell without an exchange alone"] = None
            elif exchange not in different:
                left_out[f"{exchange} with {alone.model} on {alone.num_workers} workers: is all-reduce there"] = None
            else:
                plan.cells += [
                    dataclasses.replace(alone, exchange=exchange, gigabits_per_second=gigabits)
                    for gigabits in (experiment.links or (0.0,) if links is None else links.get(alone, ()))
                ]
    plan.left_out = list(left_out)
    return plan


def in_random_order(cells: Iterable[Cell], seed: int, block: int) -> list[Cell]:
    """Return the cells of a launch in the order in which a block measures them: a random one, unlike other blocks'."""
    ordered = sorted(cells)
    random.Random(f"{seed} {block} {ordered[0].num_workers if ordered else 0}").shuffle(ordered)
    return ordered


def launches_in_random_order(workers: Iterable[int], seed: int, block: int) -> list[int]:
    """Return the numbers of workers in the order in which a block launches them."""
    ordered = sorted(set(workers))
    random.Random(f"{seed} {block}").shuffle(ordered)
    return ordered


def workload_of(cell: Cell) -> Workload:
    """Return what a cell's model exchanges."""
    workload = _workload(cell.model, cell.num_classes, _ACTIVATION_BYTES.get(cell.precision, 4))
    return dataclasses.replace(workload, global_batch_size=cell.global_batch_size)


def expected_bytes(cell: Cell) -> float:
    """Return the bytes that a worker sends per step by the exchange's formula."""
    match cell.exchange:
        case _ if cell.exchange == NO_EXCHANGE or cell.num_workers == 1:
            return 0.0
        case "bf16":
            return workload_of(cell).num_bytes("allreduce", cell.num_workers) / 2
        case "allreduce" | "factors" | "hybrid":
            return workload_of(cell).num_bytes(cell.exchange, cell.num_workers)
    raise ValueError(f"exchange={cell.exchange!r}: must be none, bf16, allreduce, factors or hybrid")


def operations_of(cell: Cell) -> float:
    """Return the floating-point operations of a step's forward and backward passes, over all workers."""
    return cell.global_batch_size * _operations_per_sample(cell.model, cell.num_classes, cell.image_size)


def _global_batches(experiment: Experiment, num_workers: int) -> set[int]:
    weak = {size * num_workers for size in experiment.batch_sizes_per_worker}
    return weak | set(experiment.global_batch_sizes)


@lru_cache(maxsize=64)
def _workload(model: str, num_classes: int, activation_bytes: int) -> Workload:
    network = outline_network(ModelConfig(name=model), num_classes=num_classes)
    return Workload.of(network, global_batch_size=1, activation_bytes=activation_bytes)


@lru_cache(maxsize=64)
def _operations_per_sample(model: str, num_classes: int, image_size: int) -> float:
    return float(_FORWARD_AND_BACKWARD * num_operations(ModelConfig(name=model), num_classes, image_size))
