"""Runs an experiment: block after block, in each a launch for each number of workers, in random orders.

What was measured is kept as soon as it is: a killed sweep loses the cell under way, and a finished one starts nothing.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cluster.lab.link_sweep import LinkFit
from cluster.lab.scaling_table import Cell
from cluster.run.json_log import JsonLog
from cluster.scaling.cells import (
    Links,
    Plan,
    computation_cells,
    in_random_order,
    launches_in_random_order,
    make_plan,
    workload_of,
)
from cluster.scaling.estimate import Estimate, estimate
from cluster.scaling.experiment import Experiment
from cluster.scaling.folder import Say, SweepFolder
from cluster.scaling.like import matching_gigabits
from pipeline.command import InputError

_MOST_CHANGES = 3  # of the kind of machine while a block is measured
_CALIBRATION = -1  # number of the block whose computations the links of `like` are found from


class Place(Protocol):
    """Where an experiment's workers run."""

    def sweep(self, num_workers: int, gigabits: float) -> LinkFit:
        """Return what a shaped link between workers is.

        Raises:
            InputError: It does not fit its model.
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
        plan = make_plan(self.experiment, computations, links)
        for (num_workers, gigabits), reason in self.folder.refused_links().items():
            of_link = [c for c in plan.cells if (c.num_workers, c.gigabits_per_second) == (num_workers, gigabits)]
            plan.cells = [cell for cell in plan.cells if cell not in of_link]
            if of_link:
                plan.refused.append(f"{num_workers} workers at {gigabits:g} Gbit/s: {reason}")
        return plan

    def computations(self) -> list[Cell]:
        """Return the cells without an exchange."""
        return computation_cells(self.experiment, self.encodings, self.num_classes)

    def missing(self, block: int, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that a block lacks."""
        measured = {each.cell for each in self.folder.measured(block)}
        return [cell for cell in cells if cell not in measured]

    def is_finished(self, plan: Plan) -> bool:
        """Return whether nothing is left to measure, or to write."""
        blocks = range(self.experiment.blocks)
        return self.folder.table.exists() and not any(self.missing(block, plan.cells) for block in blocks)

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
                _sweep_link(place, log, num_workers, gigabits)
        plan = self.plan()
        assert plan is not None
        blocks = range(self.experiment.blocks)
        for block in blocks:
            if self.missing(block, plan.cells):
                self._measure(place, block, plan.cells)
            self.folder.write_table(blocks, plan.cells)
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
            _say(f"{self._name(block)}, {num_workers} workers: {len(todo)} cells")
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
            seconds = measured.fields["step_seconds"]
            log.write("computation", cell=dataclasses.asdict(measured.cell), step_seconds=seconds)

    def _links_like(self, computations: Sequence[Cell]) -> Links | None:
        """Return the bandwidths for each cell without an exchange; None: they are not known yet."""
        cluster, seconds = self.experiment.like_cluster, self.folder.computations()
        assert cluster is not None
        links: dict[Cell, list[float]] = {}
        for cell in computations:
            if cell.num_workers > 1:
                if cell not in seconds:
                    return None
                links[cell] = [matching_gigabits(self._ratio(cell), workload_of(cell), cell.num_workers, seconds[cell])]
        return links

    def _ratio(self, cell: Cell) -> float:
        """Return the r of the imitated cluster for a cell's model and batch."""
        cluster = self.experiment.like_cluster
        assert cluster is not None
        batch = self.experiment.like_batch or cell.global_batch_size * cluster.num_workers // cell.num_workers
        return cluster.ratio(dataclasses.replace(workload_of(cell), global_batch_size=batch))


def _shaped_links(plan: Plan) -> list[tuple[int, float]]:
    """Return number of workers and Gbit/s of each link that is shaped."""
    return sorted({(cell.num_workers, cell.gigabits_per_second) for cell in plan.cells if cell.gigabits_per_second})


def _sweep_link(place: Place, log: JsonLog, num_workers: int, gigabits: float) -> None:
    link: dict[str, Any] = {"num_workers": num_workers, "gigabits_per_second": gigabits}
    try:
        fit = place.sweep(num_workers, gigabits)
    except InputError as error:
        log.write("refused_link", **link, reason=str(error))
        _say(f"link between {num_workers} workers of {gigabits:g} Gbit/s: {error}")
        return
    found = {**dataclasses.asdict(fit.link), "largest_deviation": fit.largest_deviation}
    log.write("link", **link, **found)
    _say(
        f"link between {num_workers} workers of {gigabits:g} Gbit/s: {fit.link.latency_seconds * 1e3:.2f} ms + bytes / "
        f"{fit.link.bytes_per_second * 8e-9:.3g} Gbit/s, within {fit.largest_deviation:.1%}"
    )


def _say_cell(cell: Cell, step_seconds: float) -> None:
    _say(f"  {cell}: {step_seconds:.3f} s per step, {cell.global_batch_size / step_seconds:.1f} images/s")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
