"""Prove from its ledger which samples a run consumed, and that two runs consumed the same.

    python -m cluster.ledger RUN
    python -m cluster.ledger RUN OTHER_RUN

The ledger has the ids of the batches that entered the loss, noted as they did, with a hash of each step. Of one run it
is proved that no step is missing or was changed, that each whole epoch consumed every sample exactly once and the
running one none twice, and that the ledger is as long as the newest checkpoint and the result say. Of two runs, that
they consumed the same samples of one dataset in the same order, over the length that both have; their global batches
and numbers of workers may differ.

The exit status is 0 if all is proven. If not, a line says what was found, and the status is 1; 2 is for wrong input.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cluster.run.ledger_parts import LedgerError
from cluster.run.ledger_proof import compare, prove
from cluster.run.run_folder import RunFolder
from pipeline.command import run_command


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m cluster.ledger`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    other_run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OTHER_RUN]")] = None
    """Run folder to compare it with."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    paths = [path for path in (arguments.run, arguments.other_run) if path is not None]
    runs = [RunFolder.open(path) for path in paths]
    try:
        for path, run in zip(paths, runs, strict=True):
            sys.stdout.write(f"{path}: {prove(run)}\n")
        if len(runs) == 2:
            sys.stdout.write(f"both consumed the same samples at the {compare(*runs):,} positions that they share\n")
    except LedgerError as finding:
        sys.stdout.write(f"not proven: {finding}\n")
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
