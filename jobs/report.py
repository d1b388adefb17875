"""Make one page of a run, or of several beside each other: a single HTML file that needs neither network nor scripts.

    python jobs/report.py RUN -o report.html
    python jobs/report.py runs/relu runs/tanh -o report.html

The page has the headline, the curves, what held the run back, its workers with losses and joins, the first layer's
filters, predictions on pictures, the worst confusions, what training read, the dataset, the recipe, and what the sample
ledger proves. Of several runs it also has the curves in the same axes, and what differs between their recipes. A run
may be unfinished; what a section lacks, for example a dataset that has moved, is said in its place.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("report")

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipeline.command import InputError, run_command
from pipeline.system.file_systems import existing_folder
from pipeline.system.files import atomic_file


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/report.py`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders, finished or not; at most 8."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """HTML file to write; missing folders above it are made."""
    data: Path | None = None
    """Dataset folder of the runs, if it is no longer where they were trained."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    _check_out(arguments.out)
    # Imported here: the command's help needs neither torch nor matplotlib, which take seconds to load.
    from jobs.reporting.page import make_page
    from jobs.reporting.reading import read_records
    from model.foreign import announce_file
    from pipeline.dataset import Dataset

    records = read_records(arguments.runs)
    if arguments.data is not None:
        Dataset.open(arguments.data)  # a run's own dataset may be out of reach, but not one that is named here
    for name in dict.fromkeys(record.run.config.model.name for record in records):
        announce_file(name)
    page = make_page(records, arguments.data)
    content = page.html.encode(errors="backslashreplace")  # a path may hold bytes that are no letters
    with atomic_file(arguments.out) as file:
        file.write(content)
    sys.stdout.write(f"report: {arguments.out} ({len(content) / 1e6:.1f} MB)\n")
    if page.faults:
        sys.stdout.write(
            f"not proven: the sample ledger of {', '.join(page.faults)} shows a fault; the report says which, and "
            "`python -m cluster.ledger RUN` checks it\n"
        )
    return 0


def _check_out(path: Path) -> None:
    """Raise InputError if the page could not be written to `path`, before any work is done."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {path} does not end in .html; name the page OUT.html")
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name the page OUT.html")
    folder = existing_folder(path.absolute().parent)
    if not folder.is_dir():
        raise InputError(f"--out {path}: {folder} is a file; name another folder")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--out {path}: {folder} is not writable; name another folder")


if __name__ == "__main__":
    run_command(main)
