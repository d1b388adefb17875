"""Draw the figures of a scaling experiment, and print the efficiency of each cell.

    python jobs/scaling_figures.py SWEEP/scaling.parquet --out FIGURES

For each model, precision and loader of the table: throughput and efficiency against workers, for each link
(`workers-NAME-LINK.png`); what a step consists of (`steps-NAME.png`); and the exchanges against r, the time that
all-reduce's bytes take on the link over the time of the computation (`exchanges-NAME.png`). Intervals are those of
`cluster/lab/efficiency.py`: with 3 blocks, the range of the blocks. Curves are the cost model's, fitted to all rows.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("scaling_figures")

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from pipeline.command import InputError, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cluster.lab.cost_model.kind import Kind
    from cluster.lab.cost_model.model import CostModel
    from cluster.lab.scaling_table import Row


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/scaling_figures.py`."""

    table: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """Table of jobs/scale.py: `scaling.parquet`."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write the figures to."""
    machine: str | None = None
    """Part of the name of a kind of machine: rows to draw, where the table has several."""
    loader_images_per_second_per_worker: float | None = None
    """Speed of a worker's loader alone, as `python -m pipeline.bench` measures it, for its ceiling. Default: that in
    the table, where the loader holds up a step."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    # Imported here: the command's help needs neither torch nor Matplotlib, which take seconds to load.
    from cluster.lab.cost_model.kind import by_kind
    from cluster.lab.efficiency import format_efficiencies
    from cluster.lab.scaling_table import on_one_machine, read_rows
    from jobs.scaling.exchange_drawing import describe_crossings
    from pipeline.pictures.figures import write_figure

    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"--out {arguments.out} is a file; name a folder")
    rate = arguments.loader_images_per_second_per_worker
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"--loader-images-per-second-per-worker is {rate}; it must be more than 0")
    rows = on_one_machine(read_rows(arguments.table), arguments.machine)
    if not rows:
        raise InputError(f"{arguments.table} has no rows; let jobs/scale.py finish a block")
    sys.stdout.write(format_efficiencies(rows))
    for kind, members in by_kind(rows).items():
        model = _model(members)
        if model is not None:
            sys.stdout.writelines(f"{line}\n" for line in describe_crossings(kind, members, model))
        for name, figure in _figures(kind, members, model, rate):
            path = arguments.out / f"{name}.png"
            write_figure(figure, path)
            sys.stdout.write(f"figure: {path}\n")
    return 0


def _figures(
    kind: "Kind", rows: "Sequence[Row]", model: "CostModel | None", loader_rate: float | None
) -> "Iterator[tuple[str, Figure]]":
    from jobs.scaling.exchange_drawing import draw_exchanges
    from jobs.scaling.step_drawing import draw_steps
    from jobs.scaling.worker_drawing import draw_workers, links_of

    name, ceilings = _file_name(kind), model
    if model is not None and loader_rate is not None:
        pace = dataclasses.replace(model.pace, loader_images_per_second=loader_rate)
        ceilings = dataclasses.replace(model, pace=pace)
    for gigabits in links_of(rows):
        if (figure := draw_workers(kind, rows, gigabits, ceilings)) is not None:
            yield f"workers-{name}" + (f"-{gigabits:g}gbit" if gigabits else ""), figure
    yield f"steps-{name}", draw_steps(kind, rows)
    if model is not None:
        yield f"exchanges-{name}", draw_exchanges(kind, rows, model)


def _model(rows: "Sequence[Row]") -> "CostModel | None":
    """Return the cost model, fitted to all rows; None where they lack what it needs, which is said."""
    from cluster.lab.cost_model.fit import fit_cost_model

    try:
        return fit_cost_model(rows)
    except InputError as error:
        sys.stderr.write(f"warning: no curves of the cost model, and no figure of the exchanges: {error}\n")
        return None


def _file_name(kind: "Kind") -> str:
    words = [kind.model, str(kind.image_size), kind.precision, kind.encoding]
    words += [f"{kind.cpus_per_worker:g}cpus"] * (kind.cpus_per_worker > 0)
    return "-".join(word for word in words if word)


if __name__ == "__main__":
    run_command(main)
