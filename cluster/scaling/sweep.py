"""Runs an experiment: block after block, in each a launch for each number of workers, in random orders.

What was measured is kept as soon as it is: a killed sweep loses the cell under way, and a finished one starts nothing.
The table is made anew from what is kept, by each command.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cluster.lab.link_sweep import LinkDoesNotFitError, LinkFit
from cluster.lab.scaling_table import Cell, counted
from cluster.run.json_log import JsonLog
from cluster.scaling.cells import (
    Links,
    Plan,
    computation_cells,
    in_random_order,
    launches_in_random_order,
    like_gigabits,
    make_plan,
)
from cluster.scaling.estimate import Estimate, estimate
from cluster.scaling.experiment import Experiment
from cluster.scaling.folder import Say, SweepFolder
from pipeline.command import InputError

_MOST_CHANGES = 3  # of the kind of machine while a block is measured
_CALIBRATION = -1  # number of the block whose computations the links of `like` are found from


class Place(Protocol):
    """Where an experiment's workers run."""

    def sweep(self, num_workers: int, gigabits: float) -> LinkFit:
        """Return what a shaped link between workers is.

        Raises:
            LinkDoesNotFitError: It does not fit its model.
            InputError: It can't be measured.
        """

    def measure(self, num_workers: int, cells: Sequence[tuple[int, Cell]], log: Path, say: Say) -> None:
        """Launch workers that measure cells.

        Args:
            num_workers: Number of workers.
            cells: Cells with their places in the launch's order.
            log: Log of the launch, which gets a line when it begins and one for each cell.
            say: Told of each cell that was measured.

        Raises:
            InputError: Workers failed.
        """


@dataclasses.dataclass(frozen=True)
class Sweep:
    """An experiment, its datasets, and its folder.

    Attributes:
        experiment: What is declared.
        folder: Where the results go.
        encodings: Encodings of the datasets.
        num_classes: Number of classes.
    """

    experiment: Experiment
    folder: SweepFolder
    encodings: Sequence[str]
    num_classes: int

    def plan(self) -> Plan | None:
        """Return the plan; None: the links' bandwidths are not known yet."""
        computations, links = self.computations(), None
        if self.experiment.like_cluster is not None:
            found = self._links_like(computations)
            if found is None:
                return None
            links = found
        return make_plan(self.experiment, computations, links)

    def computations(self) -> list[Cell]:
        """Return the cells without an exchange."""
        return computation_cells(self.experiment, self.encodings, self.num_classes)

    def missing(self, block: int, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that a block lacks."""
        measured = {each.cell for each in self.folder.measured(block)}
        return [cell for cell in cells if cell not in measured]

    def is_measured(self, plan: Plan) -> bool:
        """Return whether nothing is left to measure."""
        return not any(self.missing(block, plan.cells) for block in range(self.experiment.blocks))

    def write_table(self, plan: Plan) -> None:
        """Write the table of the blocks that are asked for, as far as they are whole."""
        self.folder.write_table(range(self.experiment.blocks), plan.cells)

    def estimate(self, plan: Plan) -> Estimate:
        """Return the time that what is left will take."""
        blocks = range(self.experiment.blocks)
        missing = [self.missing(block, plan.cells) for block in blocks]
        links = [link for link in _shaped_links(plan) if link not in self.folder.links()]
        known = {
            each.cell: seconds
            for block in blocks
            for each in self.folder.measured(block)
            if (seconds := each.fields["step_seconds"]) is not None
        }
        return estimate(self.experiment, missing, links, known)

    def run(self, place: Place, log: JsonLog) -> Plan:
        """Measure all that is missing; return the plan, with what was refused.

        Args:
            place: Where the workers run.
            log: Log of the links, see `SweepFolder.begin`.
        """
        if self.experiment.like_cluster is not None:
            self._calibrate(place, log)
        plan = self.plan()
        assert plan is not None
        for num_workers, gigabits in _shaped_links(plan):
            if (num_workers, gigabits) not in self.folder.links():
                _sweep_link(place, log, plan, num_workers, gigabits)
        self.write_table(plan)
        for block in range(self.experiment.blocks):
            if self.missing(block, plan.cells):
                self._measure(place, block, plan.cells)
                self.write_table(plan)
        return plan

    def _measure(self, place: Place, block: int, cells: Sequence[Cell]) -> None:
        """Measure what a block lacks, until one kind of machine and one code have measured it all."""
        seed, num_changes = self.experiment.seed, 0
        while missing := self.missing(block, cells):
            num_workers = next(
                number
                for number in launches_in_random_order((cell.num_workers for cell in cells), seed, block)
                if any(cell.num_workers == number for cell in missing)
            )
            ordered = in_random_order((cell for cell in cells if cell.num_workers == num_workers), seed, block)
            todo = [(at, cell) for at, cell in enumerate(ordered) if cell in missing]
            before, kept = self.folder.identity(block), len(cells) - len(missing)
            _say(f"{self._name(block)}, {counted(num_workers, 'worker')}: {len(todo)} cells")
            place.measure(num_workers, todo, self.folder.launch_log(block, num_workers), _say_cell)
            now = self.folder.identity(block)
            if before is not None and now is not None and now != before:
                num_changes += 1
                _say(f"{self._name(block)}: {kept} cells were measured {now.difference(before)}; it is measured anew")
            if num_changes > _MOST_CHANGES:
                raise InputError(
                    f"{self._name(block)} can't be measured on one kind of machine: workers are placed now on one, now "
                    "on another; offer the cluster's nodes of one kind alone"
                )

    def _name(self, block: int) -> str:
        return "computation alone" if block == _CALIBRATION else f"block {block + 1} of {self.experiment.blocks}"

    def _calibrate(self, place: Place, log: JsonLog) -> None:
        """Measure the computations whose times the links depend on, and keep these times for good."""
        plan = make_plan(self.experiment, self.computations(), {})
        exchanging = [cell for cell in plan.cells if cell.num_workers > 1]
        if all(cell in self.folder.computations() for cell in exchanging):
            return
        self._measure(place, _CALIBRATION, exchanging)
        for measured in self.folder.measured(_CALIBRATION):
            passes = [measured.fields[f"{name}_seconds"] or 0.0 for name in ("forward", "backward")]
            log.write("computation", cell=dataclasses.asdict(measured.cell), passes_seconds=sum(passes))

    def _links_like(self, computations: Sequence[Cell]) -> Links | None:
        """Return the bandwidths for each cell without an exchange; None: they are not known yet.

        Raises:
            InputError: No link is so fast.
        """
        seconds = self.folder.computations()
        links: dict[Cell, list[float]] = {}
        for cell in computations:
            if cell.num_workers > 1:
                if cell not in seconds:
                    return None
                links[cell] = [like_gigabits(self.experiment, cell, seconds[cell])]
        return links


def _shaped_links(plan: Plan) -> list[tuple[int, float]]:
    """Return number of workers and Gbit/s of each link that is shaped."""
    return sorted({(cell.num_workers, cell.gigabits_per_second) for cell in plan.cells if cell.gigabits_per_second})


def _sweep_link(place: Place, log: JsonLog, plan: Plan, num_workers: int, gigabits: float) -> None:
    """Note what a link is; if it does not fit, leave its cells out of the plan."""
    try:
        fit = place.sweep(num_workers, gigabits)
    except LinkDoesNotFitError as error:
        _say(f"link between {num_workers} workers of {gigabits:g} Gbit/s: {error}")
        plan.refused.append(f"{num_workers} workers at {gigabits:g} Gbit/s: {error}")
        link = (num_workers, gigabits)
        plan.cells = [cell for cell in plan.cells if (cell.num_workers, cell.gigabits_per_second) != link]
        return
    log.write(
        "link",
        num_workers=num_workers,
        gigabits_per_second=gigabits,
        **dataclasses.asdict(fit.link),
        largest_deviation=fit.largest_deviation,
    )
    _say(
        f"link between {num_workers} workers of {gigabits:g} Gbit/s: {fit.link.latency_seconds * 1e3:.2f} ms + bytes / "
        f"{fit.link.bytes_per_second * 8e-9:.3g} Gbit/s, within {fit.largest_deviation:.1%}"
    )


def _say_cell(cell: Cell, step_seconds: float) -> None:
    _say(f"  {cell}: {step_seconds:.3f} s per step, {cell.global_batch_size / step_seconds:.1f} images/s")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
