"""How long an experiment will take, from what its folder has already, else from a stated guess of the computation."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.exchange.cost import fraction_sent
from cluster.lab.cost_model.kind import Kind
from cluster.lab.cost_model.model import CostModel, Network, Pace
from cluster.lab.scaling_table import Cell, counted
from cluster.scaling.cells import num_warm_up_steps
from cluster.scaling.experiment import Experiment

GUESSED_OPERATIONS_PER_SECOND = 100e9  # per CPU
_GUESSED_MESSAGE_SECONDS, _GUESSED_GIGABITS = 0.0001, 8.0  # the latter where a link is not shaped
_LAUNCH_SECONDS, _CELL_SECONDS, _SWEEP_SECONDS = 20.0, 4.0, 8.0  # beside steps, and beside what is sent
_SWEEP_BYTES = 320e6  # of the all-reduced tensors of a sweep


@dataclass(frozen=True)
class Estimate:
    """The time of an experiment.

    Attributes:
        num_launches: Number of launches that are left.
        num_cells: Number of cells to measure in them.
        seconds: Time in all.
        is_guessed: Whether the computation of some was guessed.
    """

    num_launches: int
    num_cells: int
    seconds: float
    is_guessed: bool

    def __str__(self) -> str:
        """Say it in words."""
        if not self.num_cells:
            return "nothing is left to measure"
        rate = f"{GUESSED_OPERATIONS_PER_SECOND / 1e9:.0f} GFLOP/s per CPU"
        grounds = f"at a guess of {rate}" if self.is_guessed else "by the steps measured so far"
        minutes = max(1, round(self.seconds / 60))
        work = f"{counted(self.num_cells, 'cell')} in {self.num_launches} launch{'es' * (self.num_launches != 1)}"
        return f"{work}: about {minutes} min, {grounds}"


def estimate(
    experiment: Experiment,
    missing: Iterable[Iterable[Cell]],
    links: Iterable[tuple[int, float]],
    known: Mapping[Cell, float],
) -> Estimate:
    """Return the time that an experiment will take.

    Args:
        experiment: The declaration.
        missing: Cells that each block lacks.
        links: Number of workers and Gbit/s of each link that is still to be swept.
        known: Time of a step of cells that were measured.
    """
    seconds = sum(
        _SWEEP_SECONDS + 2 * fraction_sent(workers) * _SWEEP_BYTES / (rate * 1e9 / 8) for workers, rate in links
    )
    launches, num_cells, is_guessed = 0, 0, False
    for cells in map(list, missing):
        launches += len({cell.num_workers for cell in cells})
        num_cells += len(cells)
        is_guessed |= any(cell not in known for cell in cells)
        for cell in cells:
            num_steps = experiment.steps + num_warm_up_steps(cell, experiment.warm_up_steps)
            seconds += _CELL_SECONDS + num_steps * (known.get(cell) or guessed_step(cell))
    return Estimate(launches, num_cells, seconds + launches * _LAUNCH_SECONDS, is_guessed)


def guessed_step(cell: Cell) -> float:
    """Return a guess of the time of a cell's step, by the cost model."""
    kind = Kind.of(cell)
    cpus = cell.cpus_per_worker or len(os.sched_getaffinity(0)) / cell.num_workers
    pace = Pace(seconds_per_sample=kind.operations_per_sample / (cpus * GUESSED_OPERATIONS_PER_SECOND))
    model = CostModel(kind=kind, pace=pace, network=Network(message_seconds=_GUESSED_MESSAGE_SECONDS))
    link = cell.gigabits_per_second or _GUESSED_GIGABITS
    return model.predict(dataclasses.replace(cell, gigabits_per_second=link)).step_seconds
