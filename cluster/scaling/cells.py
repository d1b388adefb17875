"""The cells of an experiment, what they cost by the formulas, and the random order in which a block measures them."""

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.exchange.cost import Workload
from cluster.lab.cost_model.kind import Kind, exchange_ratio
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Loader, counted
from cluster.lab.shaped_link import MAX_GIGABITS
from cluster.scaling.experiment import Experiment
from cluster.scaling.like import PAYLOAD_SHARE
from model.registry import ModelConfig
from pipeline.command import InputError
from pipeline.online.batch import LoaderConfig

# Batches that a loader holds: finished ones, those in work, and one that waits for room in the queue.
_BATCHES_AHEAD = 2 * LoaderConfig.prefetch_batches + 1
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
                f"{alone.model} on {counted(alone.num_workers, 'worker')}: a batch of {alone.global_batch_size} can't "
                f"be shared by so many{groups}"
            ] = None
            continue
        plan.cells.append(alone)
        different = {*workload_of(alone).choices(alone.num_workers), "bf16"}
        for exchange in experiment.exchanges:
            if alone.num_workers == 1:
                left_out["1 worker: exchanges nothing, so it has the cell without an exchange alone"] = None
            elif exchange not in different:
                what = f"{exchange} with {alone.model} on {alone.num_workers} workers"
                left_out[f"{what}: training uses all-reduce, as its dense layers can't be cut so often"] = None
            else:
                plan.cells += [
                    dataclasses.replace(alone, exchange=exchange, gigabits_per_second=gigabits)
                    for gigabits in (experiment.links or (0.0,) if links is None else links.get(alone, ()))
                ]
    plan.left_out = list(left_out)
    return plan


def num_warm_up_steps(cell: Cell, declared: int) -> int:
    """Return the number of steps before the timed ones.

    With the loader `real` they are more: after the first step, which no CPU limit holds up, as many as the batches that
    the loader has made until then.
    """
    return max(declared, 1 + _BATCHES_AHEAD) if cell.loader == "real" else declared


def like_gigabits(experiment: Experiment, alone: Cell, passes_seconds: float) -> float:
    """Return the bandwidth of links with which a cell here has the r of `Experiment.like`, to three digits.

    Args:
        experiment: The declaration.
        alone: The cell without an exchange.
        passes_seconds: Time of its forward and backward passes.

    Raises:
        InputError: No link is so fast.
    """
    cluster = experiment.like_cluster
    assert cluster is not None
    batch = experiment.like_batch or alone.global_batch_size * cluster.num_workers // alone.num_workers
    there = dataclasses.replace(alone, num_workers=cluster.num_workers, global_batch_size=batch)
    ratio = exchange_ratio(there, cluster.payload_bytes_per_second, cluster.passes_seconds(batch))
    payload = exchange_ratio(alone, 1.0, passes_seconds) / ratio  # r is 1 / bandwidth of what it is at 1
    gigabits = float(f"{payload / PAYLOAD_SHARE * 8 / 1e9:.3g}")
    if gigabits > MAX_GIGABITS:
        raise InputError(
            f"--like {experiment.like}: r is {ratio:.3g} there, which needs links of {gigabits:g} Gbit/s between "
            f"{alone.num_workers} workers here ({alone}), and at most {MAX_GIGABITS:g} are possible; use fewer "
            "--cpus-per-worker, so that this machine computes more slowly, or imitate a cluster with slower links, and "
            "another --out"
        )
    return gigabits


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
    return Kind.of(cell).workload(cell.global_batch_size)


def expected_bytes(cell: Cell) -> float:
    """Return the bytes that a worker sends per step by the exchange's formula."""
    traffic = Kind.of(cell).traffic(cell.exchange, cell.num_workers, cell.global_batch_size)
    return traffic.hidden_bytes + traffic.awaited_bytes


def operations_of(cell: Cell) -> float:
    """Return the floating-point operations of a step's forward and backward passes, over all workers."""
    return cell.global_batch_size * Kind.of(cell).operations_per_sample


def _global_batches(experiment: Experiment, num_workers: int) -> set[int]:
    weak = {size * num_workers for size in experiment.batch_sizes_per_worker}
    return weak | set(experiment.global_batch_sizes)
