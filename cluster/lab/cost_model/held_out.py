"""Judges the cost model on what it was not fitted to: whole values of an axis, never single cells.

The largest number of workers, each bandwidth and each global batch in turn is kept out of the fit, with all its rows,
those without an exchange and the sweeps of its links too. A value between others is interpolated, one at an end is
extrapolated. The baselines get the same rows and predict the same cells.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from cluster.lab.cost_model.baselines import BASELINES, predict_by_baseline
from cluster.lab.cost_model.fit import fit_cost_model, is_exchanging
from cluster.lab.cost_model.kind import Kind
from cluster.lab.efficiency import by_cell, paired_ratio, step_seconds
from cluster.lab.scaling_table import Cell, Row
from pipeline.command import InputError

Axis = Literal["num_workers", "gigabits_per_second", "global_batch_size"]
Place = Literal["between", "largest", "smallest"]
MODEL = "cost model"
_WORDS: dict[Axis, str] = {
    "num_workers": "{:g} workers",
    "gigabits_per_second": "{:g} Gbit/s",
    "global_batch_size": "a global batch of {:g}",
}
_PLACES: dict[Place, str] = {
    "between": "between the others",
    "largest": "above the others",
    "smallest": "below the others",
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """A value of an axis that is held out.

    Attributes:
        kind: What all rows have in common.
        axis: Axis of the value.
        value: The value.
        place: Whether it lies between other values, or at an end.
        training: Rows with other values.
        test: Rows with this value, an exchange and a measured link.
    """

    kind: Kind
    axis: Axis
    value: float
    place: Place
    training: tuple[Row, ...]
    test: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Describe it."""
        return f"{_WORDS[self.axis].format(self.value)}, {_PLACES[self.place]}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which exchange is fastest in some cells that differ in nothing else.

    Attributes:
        cell: One of the cells.
        best: Exchange with the shortest measured step.
        ties: Exchanges whose steps are not longer beyond doubt, the best one included.
        predicted: Exchange with the shortest predicted step.
        loss: By how much its measured step is longer than the best one's, relative.
        is_decided: Whether another exchange is slower beyond doubt.
    """

    cell: Cell
    best: str
    ties: tuple[str, ...]
    predicted: str
    loss: float
    is_decided: bool

    @property
    def is_right(self) -> bool:
        """Whether the predicted exchange is the best one as far as can be told."""
        return self.predicted in self.ties


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How well one of the models predicted what was held out.

    Attributes:
        split: What was held out.
        predictor: Name of the model.
        errors: Relative error of each cell's step, predicted / measured - 1.
        choices: What it would have chosen.
    """

    split: Split
    predictor: str
    errors: Mapping[Cell, float]
    choices: tuple[Choice, ...]

    @property
    def median_error(self) -> float:
        """Median of the errors' sizes."""
        return median(map(abs, self.errors.values()))

    @property
    def largest_error(self) -> float:
        """Largest of the errors' sizes."""
        return max(map(abs, self.errors.values()))


def splits(rows: Sequence[Row]) -> list[Split]:
    """Return all values that can be held out of the rows of one kind: others of their axis must remain."""
    kind, found = Kind.of(rows[0]), []
    for axis in _WORDS:
        values = sorted({getattr(row, axis) for row in rows if is_exchanging(row)})
        for value in values[-1:] if axis == "num_workers" else values:
            place: Place = "largest" if value == values[-1] else "smallest" if value == values[0] else "between"
            split = Split(
                kind=kind,
                axis=axis,
                value=value,
                place=place,
                training=tuple(row for row in rows if getattr(row, axis) != value),
                test=tuple(row for row in rows if getattr(row, axis) == value and is_exchanging(row)),
            )
            if any(map(is_exchanging, split.training)):
                found.append(split)
    return found


def judge(split: Split) -> list[Verdict]:
    """Return how well the cost model and each baseline predict what is held out."""
    try:
        model = fit_cost_model(split.training)
    except InputError:  # no row without an exchange remains
        return []
    predictors: dict[str, Callable[[Cell], float]] = {MODEL: lambda cell: model.predict(cell).step_seconds}
    for name in BASELINES:
        predictors[name] = lambda cell, name=name: predict_by_baseline(name, split.training, cell)  # type: ignore[misc]
    cells = by_cell(split.test)
    verdicts = []
    for name, predict in predictors.items():
        predicted = {cell: predict(cell) for cell in cells}
        known = {cell: seconds for cell, seconds in predicted.items() if math.isfinite(seconds)}
        errors = {cell: seconds / step_seconds(cells[cell]) - 1 for cell, seconds in known.items()}
        if errors:
            choices = tuple(find_choices(cells, known))
            verdicts.append(Verdict(split=split, predictor=name, errors=errors, choices=choices))
    return verdicts


def find_choices(cells: Mapping[Cell, Sequence[Row]], predicted: Mapping[Cell, float]) -> list[Choice]:
    """Return the choices between exchanges, where there are several.

    Args:
        cells: Rows of each cell.
        predicted: Predicted time of a step of each.
    """
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        if cell in predicted:
            groups.setdefault(_but_for_exchange(cell), []).append(cell)
    choices = []
    for group in groups.values():
        if len(group) < 2:
            continue
        seconds = {cell: step_seconds(cells[cell]) for cell in group}
        best = min(group, key=lambda cell: seconds[cell])
        chosen = min(group, key=lambda cell: predicted[cell])
        ties = tuple(cell.exchange for cell in group if not _is_slower(cells[cell], cells[best]))
        choices.append(
            Choice(
                cell=best,
                best=best.exchange,
                ties=ties,
                predicted=chosen.exchange,
                loss=seconds[chosen] / seconds[best] - 1,
                is_decided=len(ties) < len(group),
            )
        )
    return choices


def _but_for_exchange(cell: Cell) -> Cell:
    return dataclasses.replace(cell, exchange="")


def _is_slower(rows: Sequence[Row], best: Sequence[Row]) -> bool:
    """Return whether rows are slower than the best ones beyond doubt: the interval of their ratio excludes 1."""
    ratio = paired_ratio(rows, best)
    return ratio is not None and ratio.is_known and ratio.high < 1
