"""Check and time the whole project on a GPU: independent checks, each in its own process with a time limit.

    python -m benchmarks.gpu                          # all of them, in six minutes
    python -m benchmarks.gpu --phase compute          # those that need torch alone, no DALI and no datasets
    python -m benchmarks.gpu --only parity loader     # some of them
    python -m benchmarks.gpu --dry-run                # all of them, tiny, on a CPU, to test the checks themselves

Each check prints one line, OK or FAIL, with its figures. The aims follow at the end, met or missed. The folder --out
gets record.json, which `python -m benchmarks.gpu.results` prints as Markdown, results.json, log.txt, profile.txt and
pytest.txt. A check that fails, crashes or hangs does not affect the next one. The most valuable checks come first; if
--budget is used up, the remaining ones are reported as skipped; with a larger one, each takes more cases. Missing
datasets are made first; to make them beforehand, run `python -m benchmarks.gpu.datasets DATA`. The exit status is 1 if
a check failed; a missed aim does not change it.
"""

import json
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.gpu.check_process import Result, run_check
from benchmarks.gpu.checks import CHECKS, DATASETS, Check, find_gpu
from benchmarks.gpu.datasets import missing_datasets
from benchmarks.gpu.record import session_record
from benchmarks.gpu.results import aims_table
from benchmarks.gpu.trial import ROUNDS, Trial
from pipeline import embedded
from pipeline.command import InputError, run_command
from pipeline.system.files import write_json

_LEAST_SECONDS = 10  # left for a check to be started
_LIMIT_FACTOR, _LIMIT_ADDED = 2, 20  # a check is killed after so many times its planned seconds, and so many more
_DRY_RUN_FACTOR = 4  # times that limit, because a CPU is slow
_SHOWN_CHARACTERS = 1500


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.gpu`."""

    phase: Literal["all", "compute", "dali"] = "all"
    """compute: checks that need only torch; dali: checks that need DALI too."""
    only: tuple[str, ...] = ()
    """Names of the checks to run, in this order. Default: all checks of the phase."""
    budget: float = 360.0
    """Time for everything, in seconds."""
    seconds: float = 1.0
    """Length of one measurement of the loader; steps and operations are measured for a shorter time."""
    data: Path | None = None
    """Folder with a dataset for each encoding: jpeg, raw, original. Default: a folder in the user's cache."""
    out: Path | None = None
    """Folder for the results. Default: the environment variable OUT, or a new folder in the user's cache."""
    dry_run: bool = False
    """Run everything on the CPU with tiny inputs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    checks = _chosen(arguments)
    session = _Session(arguments)
    if not arguments.dry_run:
        gpu = session.run(find_gpu, session.seconds_left, session.seconds_left)
        if not gpu.ok:
            raise InputError(f"no GPU can be used ({gpu.error}); try the checks on a CPU with --dry-run")
    if any(check.needs_data for check in checks) and missing_datasets(session.data):
        checks.insert(0, DATASETS)
    # What the budget has beyond the plan is shared out among the checks.
    stretch = max(1.0, session.seconds_left / sum(check.seconds for check in checks))
    for check in checks:
        session.check(check, stretch)
    return session.end()


def _chosen(arguments: Arguments) -> list[Check]:
    if not _LEAST_SECONDS <= arguments.budget < math.inf:
        raise InputError(f"--budget is {arguments.budget:g}; it must be at least {_LEAST_SECONDS} seconds")
    if not 0 < arguments.seconds < math.inf:
        raise InputError(f"--seconds is {arguments.seconds:g}; it must be above 0")
    for name in arguments.only:
        if name not in CHECKS:
            raise InputError(f"there is no check {name!r}; --only takes {', '.join(CHECKS)}")
        if arguments.phase not in ("all", CHECKS[name].phase):
            raise InputError(f"--only {name} belongs to the phase {CHECKS[name].phase}; leave out --phase")
    if arguments.only:
        return [CHECKS[name] for name in dict.fromkeys(arguments.only)]
    return [check for check in CHECKS.values() if arguments.phase in ("all", check.phase)]


class _Session:
    """Runs checks one after another, prints their results and writes them to a file.

    Attributes:
        data: Folder of the datasets.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._began, self._arguments = time.monotonic(), arguments
        cache = embedded.cache_folder() / "gpu-checks"
        self.data = (arguments.data or cache / ("tiny-data" if arguments.dry_run else "data")).absolute()
        stated = arguments.out or os.environ.get("OUT") or cache / time.strftime("%Y%m%d-%H%M%S")
        self._out = Path(stated).absolute()
        self._out.mkdir(parents=True, exist_ok=True)
        self._results: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "dry_run": arguments.dry_run,
            "checks": {},
        }

    @property
    def seconds_left(self) -> float:
        """Seconds left of the budget."""
        return self._arguments.budget - (time.monotonic() - self._began)

    def run(self, run: Callable[[Trial], None], planned_seconds: float, limit_seconds: float) -> Result:
        """Run a check in its process."""
        now = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="gpu-checks-", ignore_cleanup_errors=True) as scratch:
            trial = Trial(
                is_dry=self._arguments.dry_run,
                data=self.data,
                out=self._out,
                scratch=Path(scratch),
                seconds=0.0 if self._arguments.dry_run else self._arguments.seconds,
                planned_end=now + planned_seconds,
                deadline=now + limit_seconds,
            )
            return run_check(run, trial, self._out / "log.txt")

    def check(self, check: Check, stretch: float) -> None:
        """Run a check if there is time; print and write its result.

        Args:
            check: Check to run.
            stretch: Factor of its planned seconds.
        """
        planned_seconds, name = stretch * check.seconds, check.name
        limit_seconds = (_LIMIT_FACTOR * planned_seconds + _LIMIT_ADDED) * (
            _DRY_RUN_FACTOR if self._arguments.dry_run else 1
        )
        limit_seconds = min(limit_seconds, self.seconds_left)
        result = Result(ok=None, error="no time left of --budget")
        if limit_seconds >= _LEAST_SECONDS:
            with open(self._out / "log.txt", "a") as log:
                log.write(f"\n===== {name}\n")
            result = self.run(check.run, min(planned_seconds, limit_seconds), limit_seconds)
        self._results["checks"][name] = result.document()
        write_json(self._out / "results.json", self._results)
        word = {True: "OK  ", False: "FAIL", None: "SKIP"}[result.ok]
        shown = {figure: value for figure, value in result.figures.items() if figure != ROUNDS}
        told = [_shortened(text) for text in (result.error, json.dumps(shown)) if text]
        sys.stdout.write(f"{word} {name} ({result.seconds:g} s) {'; '.join(told)}\n")
        sys.stdout.flush()

    def end(self) -> int:
        """Write the record; print the aims and the number of checks by result; return the exit status."""
        checks = self._results["checks"]
        record = session_record(checks, self._command(), self._arguments.dry_run)
        write_json(self._out / "record.json", record)
        outcomes = [result["ok"] for result in checks.values()]
        if record["results"]:
            dry = "A dry run on a CPU: these figures mean nothing.\n\n" * self._arguments.dry_run
            sys.stdout.write(f"\n{dry}{aims_table(record)}\n")
        sys.stdout.write(
            f"{outcomes.count(True)} OK, {outcomes.count(False)} failed, {outcomes.count(None)} skipped; "
            f"{time.monotonic() - self._began:.0f} s; results: {self._out}\n"
        )
        return int(False in outcomes)

    def _command(self) -> str:
        """Return the command line without its folders."""
        stated = self._arguments
        words = ["python", "-m", "benchmarks.gpu", "--budget", f"{stated.budget:g}", "--seconds", f"{stated.seconds:g}"]
        words += ["--phase", stated.phase] * (stated.phase != "all") + ["--dry-run"] * stated.dry_run
        return shlex.join([*words, *(["--only", *stated.only] if stated.only else [])])


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


if __name__ == "__main__":
    run_command(main)
