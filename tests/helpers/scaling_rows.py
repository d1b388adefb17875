"""Rows of a scaling experiment that obey a known law, with noise."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from cluster.lab.cost_model.kind import Kind, samples_per_worker
from cluster.lab.cost_model.model import CostModel, Network, Overlap, Pace
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Row, with_exposed

KIND = Kind(model="alexnet_small", image_size=28, num_classes=10, precision="float32", cpus_per_worker=0.5)
LAW = CostModel(
    kind=KIND,
    pace=Pace(fixed_seconds=0.01, seconds_per_sample=0.002, update_seconds=0.004),
    network=Network(message_seconds=2e-4, shares=((0.1, 0.95), (1.0, 0.9))),
    overlap=Overlap(kappa=0.3, hidden_share=0.6, tail=0.05),
)
EXCHANGES = ("allreduce", "bf16", "factors", "hybrid")


def cells_of(
    workers: Iterable[int] = (1, 2, 4),
    batches: Sequence[int] = (64,),
    links: Sequence[float] = (0.1, 0.3, 1.0),
    exchanges: Sequence[str] = EXCHANGES,
    kind: Kind = KIND,
) -> list[Cell]:
    """Return the cells of an experiment: those without an exchange too."""
    common = {
        "model": kind.model,
        "image_size": kind.image_size,
        "num_classes": kind.num_classes,
        "precision": kind.precision,
        "loader": kind.loader,
        "encoding": kind.encoding,
        "cpus_per_worker": kind.cpus_per_worker,
    }
    cells = []
    for num_workers in workers:
        for batch in batches:
            alone = Cell(**common, num_workers=num_workers, global_batch_size=batch, exchange=NO_EXCHANGE)
            cells.append(alone)
            cells += [
                Cell(
                    **common,
                    num_workers=num_workers,
                    global_batch_size=batch,
                    exchange=exchange,
                    gigabits_per_second=gigabits,
                )
                for gigabits in links
                for exchange in exchanges
                if num_workers > 1
            ]
    return cells


def make_rows(
    cells: Iterable[Cell], law: CostModel = LAW, num_blocks: int = 3, noise: float = 0.0, seed: int = 0
) -> list[Row]:
    """Return a row for each cell and block; blocks differ by a factor of their own, cells by `noise`, relative."""
    random = np.random.Generator(np.random.Philox(seed))
    rows = []
    for block in range(num_blocks):
        pace = math.exp(noise * random.standard_normal())
        for place, cell in enumerate(cells):
            factor = pace * math.exp(noise * random.standard_normal())
            rows.append(_row(cell, law, block, place, factor))
    return with_exposed(rows)


def _row(cell: Cell, law: CostModel, block: int, place: int, factor: float) -> Row:
    parts = law.predict(cell)
    step = parts.step_seconds * factor
    has_link = cell.gigabits_per_second > 0
    link = law.network.link(cell.gigabits_per_second, cell.num_workers) if has_link else None
    traffic = law.kind.traffic(cell.exchange, cell.num_workers, cell.global_batch_size)
    passes, blocked = parts.compute_seconds + parts.slowest_seconds, parts.exchange_seconds
    wait = max(0.0, step - factor * (passes + blocked + parts.update_seconds))
    num_bytes = traffic.hidden_bytes + traffic.awaited_bytes
    return Row(
        **{name: getattr(cell, name) for name in Cell.__dataclass_fields__},
        block=block,
        place=place,
        num_steps=6,
        images_per_second=cell.global_batch_size / step,
        step_seconds=step,
        step_seconds_p90=step * 1.05,
        mean_step_seconds=step - factor * (blocked + parts.slowest_seconds),
        data_wait_seconds=wait,
        forward_seconds=factor * passes / 3,
        backward_seconds=factor * (passes * 2 / 3 + blocked),
        blocked_seconds=factor * blocked,
        update_seconds=factor * parts.update_seconds,
        sent_bytes=num_bytes,
        expected_bytes=num_bytes,
        operations=law.kind.operations_per_sample * cell.global_batch_size,
        peak_memory_bytes=2**30,
        cpu_seconds=samples_per_worker(cell) * 0.001,
        throttled_seconds=0.0,
        link_latency_seconds=link.latency_seconds if link else math.nan,
        link_bytes_per_second=link.bytes_per_second if link else math.nan,
        link_deviation=0.01 if link else math.nan,
        code="0" * 12,
        versions="{}",
        machine="two cores",
        time="2012-12-03T10:00:00+00:00",
    )
