"""Print the record of `python -m benchmarks.gpu` as Markdown: the card, the aims, the figures.

docs/results.md takes the output as it is.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.gpu.card import DRIVER, NAME
from benchmarks.record import markdown
from pipeline.command import InputError, run_command

_SHOWN_PACKAGES = ("torch", "triton", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "torchvision")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.gpu.results`."""

    record: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RECORD")]
    """File record.json in the results of `python -m benchmarks.gpu`, or a copy of it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    path = tyro.cli(Arguments, args=argv, description=__doc__).record
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); name a record.json") from error
    if not isinstance(record, dict) or not {"card", "checks", "comparisons", "results"} <= record.keys():
        raise InputError(f"{path} is not a record of `python -m benchmarks.gpu`; name its record.json")
    sys.stdout.write(rendered(record))
    return 0


def rendered(record: Mapping[str, Any]) -> str:
    """Return a record as Markdown: one table of the aims, then one for the alternatives of each set of quantities."""
    return "\n".join([_heading(record), aims_table(record), *_tables(record)])


def aims_table(record: Mapping[str, Any]) -> str:
    """Return the aims, each with its value and whether it is met."""
    return markdown({"quantities": {}, "results": {}, "comparisons": record["comparisons"]}).partition("\n\n")[2]


def _heading(record: Mapping[str, Any]) -> str:
    environment, card = record["environment"], record["card"]
    packages = environment["packages"]
    parts = [
        f"{card.get(NAME, 'no card')}, driver {card[DRIVER]}" if DRIVER in card else "no card",
        f"{environment['cpu']}, {environment['cores']} cores",
        ", ".join(f"{name} {packages[name]}" for name in _SHOWN_PACKAGES if name in packages),
        f"commit {environment['git_commit'][:12]}{' with changes' * environment['git_dirty']}",
        record["date"][:10],
    ]
    by_outcome = {
        outcome: [name for name, found in record["checks"].items() if found == outcome]
        for outcome in ("ok", "failed", "skipped")
    }
    checks = "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in by_outcome.items() if names)
    warning = "A dry run on a CPU: its figures mean nothing.\n\n" if record["dry_run"] else ""
    return f"{warning}{'; '.join(parts)}.\n\nChecks {checks}.\n"


def _tables(record: Mapping[str, Any]) -> list[str]:
    results: Mapping[str, Mapping[str, Any]] = record["results"]
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for alternative, measured in results.items():
        shown = tuple(quantity for quantity in record["quantities"] if quantity in measured)
        groups.setdefault(shown, {})[alternative] = measured
    return [
        markdown({"quantities": dict.fromkeys(shown), "results": group, "comparisons": []})
        for shown, group in groups.items()
    ]


if __name__ == "__main__":
    run_command(main)
