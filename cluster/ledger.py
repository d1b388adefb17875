"""Prove from its ledger which samples a run consumed, and that two runs consumed the same.

    python -m cluster.ledger RUN
    python -m cluster.ledger RUN OTHER_RUN
    python -m cluster.ledger RUN --json

The ledger has the ids of the batches that entered the loss, noted as they did, with a hash of each step. Of one run it
is proved that no step is missing or was changed, that each whole epoch consumed every sample exactly once and the
running one none twice, and that the ledger is as long as the newest checkpoint and the result say. Of two runs, that
they consumed the same samples of one dataset in the same order, over the length that both have; their global batches
and numbers of workers may differ.

The exit status is 0 if all is proven. If not, a line says what was found, and the status is 1; 2 is for wrong input.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cluster.run.ledger_parts import LedgerError
from cluster.run.ledger_proof import compare, prove
from cluster.run.run_folder import RunFolder
from pipeline.command import run_command
from pipeline.json_answer import JsonTarget, completed, json_answer


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m cluster.ledger`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    other_run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OTHER_RUN]")] = None
    """Run folder to compare it with."""
    json: JsonTarget = None
    """File to write the proof to as JSON; without a file, standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=completed(argv), description=__doc__)
    paths = [path for path in (arguments.run, arguments.other_run) if path is not None]
    runs = [RunFolder.open(path) for path in paths]
    document: dict[str, Any] = {"is_proven": True, "finding": None, "runs": {}, "num_shared_positions": None}
    with json_answer(arguments.json, *paths) as answer:
        try:
            for path, run in zip(paths, runs, strict=True):
                consumption = prove(run)
                document["runs"][str(path)] = asdict(consumption)
                sys.stdout.write(f"{path}: {consumption}\n")
            if len(runs) == 2:
                shared = document["num_shared_positions"] = compare(*runs)
                sys.stdout.write(f"both consumed the same samples at the {shared:,} positions that they share\n")
        except LedgerError as finding:
            document |= {"is_proven": False, "finding": str(finding)}
            sys.stdout.write(f"not proven: {finding}\n")
        answer(document)
    return 0 if document["is_proven"] else 1


if __name__ == "__main__":
    run_command(main)
