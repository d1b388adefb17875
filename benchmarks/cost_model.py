"""Judge the cost model of scaling on what it was not fitted to, beside three baselines.

    python -m benchmarks.cost_model SWEEP/scaling.parquet

The largest number of workers, each bandwidth and each global batch of a table of jobs/scale.py is kept out in turn,
with all its rows. An error is that of a cell's step, relative to the median of its blocks. A choice of an exchange is
right if no other is faster in the interval of their ratio; of choices, those count where some exchange is slower beyond
doubt.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.record import Comparison, Values, publish, record_document
from cluster.lab.cost_model.fit import fit_cost_model
from cluster.lab.cost_model.held_out import MODEL, Verdict, judge, splits
from cluster.lab.cost_model.kind import Kind, by_kind
from cluster.lab.scaling_table import Row, on_one_machine, read_rows
from pipeline.command import InputError, run_command

_MEDIAN, _LARGEST, _CELLS = "median_error", "largest_error", "cells"
_RIGHT, _DECIDED, _LOSS = "choices_right", "choices_decided", "largest_loss"
_QUANTITIES = {
    _MEDIAN: "of the predicted step, relative, over the cells kept out",
    _LARGEST: "the same, largest",
    _CELLS: "number of cells kept out",
    _RIGHT: "number of times that the exchange predicted as fastest was so, as far as can be told",
    _DECIDED: "number of choices where some exchange is slower beyond doubt",
    _LOSS: "by how much the exchange predicted as fastest was slower than the fastest one, relative, largest",
}
_AIMS = {"between": 0.10, "largest": 0.15}  # median errors of the cost model: interpolated, and on most workers


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.cost_model`."""

    table: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """Table of jobs/scale.py: `scaling.parquet`."""
    machine: str | None = None
    """Part of the name of a kind of machine: rows to judge by, where the table has several."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    rows = on_one_machine(read_rows(arguments.table), arguments.machine)
    verdicts = [verdict for members in by_kind(rows).values() for split in splits(members) for verdict in judge(split)]
    if not verdicts:
        raise InputError(
            f"{arguments.table} has nothing to keep out: it takes exchanges on two numbers of workers, links or batches"
        )
    publish(document_of(rows, verdicts))
    return 0


def document_of(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the record."""
    kinds = by_kind(rows)
    values: Values = {}
    for verdict in verdicts:
        decided = [choice for choice in verdict.choices if choice.is_decided]
        values[_label(verdict)] = {
            _MEDIAN: [verdict.median_error],
            _LARGEST: [verdict.largest_error],
            _CELLS: [float(len(verdict.errors))],
            _RIGHT: [float(sum(choice.is_right for choice in decided))],
            _DECIDED: [float(len(decided))],
            _LOSS: [max((choice.loss for choice in verdict.choices), default=0.0)],
        }
    document = record_document(
        name="cost_model",
        command="python -m benchmarks.cost_model TABLE",
        corpus=f"TABLE: {len(rows)} rows of {len({row.block for row in rows})} blocks, " + "; ".join(map(str, kinds)),
        quantities=_QUANTITIES,
        values=values,
        comparisons=list(_comparisons(verdicts)),
        packages=["numpy", "scipy", "torch"],
    )
    document["measured_on"] = rows[0].machine
    document["fits"] = {str(kind): _fit(kind, members) for kind, members in kinds.items()}
    document["errors"] = {
        _label(verdict): {str(cell): error for cell, error in verdict.errors.items()} for verdict in verdicts
    }
    return document


def _comparisons(verdicts: Sequence[Verdict]) -> "list[Comparison]":
    found = []
    for verdict in verdicts:
        split = verdict.split
        if verdict.predictor == MODEL:
            if split.place == "between" or split.axis == "num_workers":
                aim = _AIMS[split.place]
                found.append(Comparison(of=_label(verdict), quantity=_MEDIAN, at_most=aim))
        else:
            ours = next(one for one in verdicts if one.split is split and one.predictor == MODEL)
            found.append(Comparison(of=_label(ours), quantity=_MEDIAN, to=_label(verdict), at_most=1.0))
    return found


def _label(verdict: Verdict) -> str:
    return f"{verdict.split.kind}; {verdict.split.name}: {verdict.predictor}"


def _fit(kind: Kind, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the model of all rows, or why there is none."""
    try:
        model = fit_cost_model(rows)
    except InputError as error:
        return {"none": str(error)}
    pace = asdict(model.pace)
    if math.isinf(model.pace.loader_images_per_second):  # the loader never held up a step
        pace["loader_images_per_second"] = None
    return {"pace": pace, "network": asdict(model.network), "overlap": asdict(model.overlap)}


if __name__ == "__main__":
    run_command(main)
