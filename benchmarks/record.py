"""Tools shared by all benchmarks: interleaved rounds, medians and their ratios, targets, and dated records.

Alternatives run in turn, A B C, A B C, ..., so that the noise of a shared machine affects all of them equally. A record
contains neither the machine's name nor any of its paths.
"""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.system.files import write_json
from pipeline.system.processor import this_processor

ROOT = Path(__file__).parent.parent
_RECORDS = Path(__file__).parent / "records"
Values = dict[str, dict[str, list[float]]]  # alternative -> quantity -> the value of each round


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A median, or its ratio to the same median of another alternative, and its bounds.

    Attributes:
        of: Name of the alternative.
        quantity: Quantity whose median is compared.
        to: Alternative to divide by; None: the median itself is compared.
        at_least: Lower bound, or None.
        at_most: Upper bound, or None.
    """

    of: str
    quantity: str
    to: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, values: Values) -> dict[str, Any]:
        """Return the comparison with its `value`, and whether it is `met` (None if it has no bound)."""
        value = statistics.median(values[self.of][self.quantity])
        if self.to is not None:
            value /= statistics.median(values[self.to][self.quantity])
        kept = [
            value >= self.at_least if self.at_least is not None else None,
            value <= self.at_most if self.at_most is not None else None,
        ]
        bounds = [bound for bound in kept if bound is not None]
        return {**asdict(self), "value": value, "met": all(bounds) if bounds else None}

    def is_measured(self, values: Values) -> bool:
        """Return whether the values to compare are there."""
        return all(values.get(name, {}).get(self.quantity) for name in (self.of, self.to) if name is not None)

    def unmeasured(self) -> dict[str, Any]:
        """Return the comparison without a value, in the form of `judge`."""
        return {**asdict(self), "value": None, "met": None}


def run_rounds(alternatives: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int) -> Values:
    """Run the alternatives in turn, `rounds` times, and collect the values they return.

    Args:
        alternatives: Name -> function that runs the alternative and returns quantity -> value. The name of a quantity
            ends in its unit: `images_per_second`, `peak_worker_megabytes`.
        rounds: Number of rounds.
    """
    values: Values = {name: {} for name in alternatives}
    for number in range(1, rounds + 1):
        for name, run in alternatives.items():
            measured = run()
            shown = ", ".join(f"{quantity} {_figure(value)}" for quantity, value in measured.items())
            sys.stderr.write(f"round {number}/{rounds}  {name}: {shown}\n")
            for quantity, value in measured.items():
                values[name].setdefault(quantity, []).append(float(value))
    return values


def record_document(
    *,
    name: str,
    command: str,
    corpus: str,
    quantities: Mapping[str, str],
    values: Values,
    comparisons: Sequence[Comparison],
    packages: Iterable[str],
) -> dict[str, Any]:
    """Return a record.

    Args:
        name: Name of the benchmark.
        command: Command line, with placeholders (PHOTOS) for paths.
        corpus: Description of the data behind the placeholders.
        quantities: Quantity -> what exactly was counted or timed.
        values: Values of all rounds.
        comparisons: Comparisons to evaluate.
        packages: Distributions whose versions matter; those not installed are left out.
    """
    results = {
        alternative: {
            quantity: {
                "median": statistics.median(rounds),
                "min": min(rounds),
                "max": max(rounds),
                "rounds": rounds,
            }
            for quantity, rounds in measured.items()
        }
        for alternative, measured in values.items()
    }
    return {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "corpus": corpus,
        "quantities": dict(quantities),
        "results": results,
        "comparisons": [comparison.judge(values) for comparison in comparisons],
        "environment": environment(packages),
    }


def publish(document: dict[str, Any], folder: Path = _RECORDS) -> Path:
    """Write a record as `FOLDER/YYYY-MM-DD-NAME.json`, print its tables, and return its path.

    If the libraries are limited to some of the processor's instructions, the name ends with that limit: `-avx2`.
    """
    form = this_processor().form
    path = folder / f"{document['date'][:10]}-{document['benchmark']}{form and f'-{form}'}.json"
    write_json(path, document)
    sys.stdout.write(f"{document['environment']['cpu']}, {document['environment']['cores']} cores\n")
    sys.stdout.write(markdown(document))
    return path


def markdown(document: Mapping[str, Any]) -> str:
    """Return a record's results and comparisons as two Markdown tables."""
    quantities = list(document["quantities"])
    rows = [["", *quantities]]
    for alternative, measured in document["results"].items():
        rows.append([alternative, *(_spread(measured.get(quantity)) for quantity in quantities)])
    tables = [rows]
    if document["comparisons"]:
        tables.append([["", "quantity", "value", "target", "met"], *map(_comparison_row, document["comparisons"])])
    return "\n".join(_table(rows) for rows in tables)


def _comparison_row(judged: Mapping[str, Any]) -> list[str]:
    signs = {"at_least": ">=", "at_most": "<="}
    bounds = [f"{sign} {_figure(judged[bound])}" for bound, sign in signs.items() if judged[bound] is not None]
    return [
        judged["of"] + (f" / {judged['to']}" if judged["to"] else ""),
        judged["quantity"],
        "not measured" if judged["value"] is None else _figure(judged["value"]),
        ", ".join(bounds) or "-",
        {True: "yes", False: "no", None: "-"}[judged["met"]],
    ]


def _spread(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "-"
    if len(measured["rounds"]) == 1:
        return _figure(measured["median"])
    return f"{_figure(measured['median'])} ({_figure(measured['min'])} to {_figure(measured['max'])})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |\n" for row in rows]
    return head + "|" + " --- |" * len(rows[0]) + "\n" + "".join(body)


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """Return what figures depend on: processor, memory, versions of those packages that are there, commit."""
    return {
        "cpu": str(this_processor()),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "linux": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := _version(name))},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/records")),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """Return git's output; empty outside a checkout, and if git is not installed."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
