"""Time the phases from `ray job submit` to the end of the first step, on a Ray cluster of this machine.

Two workers train `alexnet_small` on the embedded dataset. Ray is started beforehand, as on a real cluster. For
comparison: `python jobs/train.py`, which starts its own Ray, and a single process without Ray.
"""

import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import tyro

from benchmarks.record import ROOT, Comparison, publish, record_document, run_rounds
from cluster.lab.local_ray import local_ray
from cluster.run.run_log import (
    LAUNCHES_JSONL,
    METRICS_JSONL,
    Launched,
    Line,
    LineT,
    Started,
    Steps,
    only,
    read_launches,
    read_metrics,
)
from pipeline import embedded
from pipeline.command import run_command

_QUANTITIES = {
    "submit_seconds": "from the command to the start of the driver's process: Ray's upload and job server",
    "driver_seconds": "to the launch of the workers: imports, connecting, preflight",
    "workers_seconds": "to the workers' start: Ray Train's controller, processes, imports, process group, model",
    "first_step_seconds": "to the log's line of the first step: loader, first batch, first step",
    "total_seconds": "all of it",
}
_POLL_SECONDS = 0.02
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.first_step`."""

    rounds: int = 5
    """Runs of each alternative."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    folder = Path(tempfile.mkdtemp(prefix="first-step-"))
    train = ["jobs/train.py", "--data", str(embedded.dataset_folder()), "--recipe", "small_demo"]
    try:
        with local_ray(working_directory=ROOT) as ray:
            submit = ["ray", "job", "submit", "--address", ray.address, "--working-dir", ".", "--", "python", *train]
            values = run_rounds(
                {
                    "ray job submit": partial(_measure, [*submit, "--workers", "2"], folder, ray.environment),
                    "python jobs/train.py": partial(
                        _measure, [sys.executable, *train, "--workers", "2"], folder, ray.environment
                    ),
                    "one process alone": partial(
                        _measure, [sys.executable, *train, "--launcher", "alone"], folder, ray.environment
                    ),
                },
                arguments.rounds,
            )
    finally:
        shutil.rmtree(folder)
    publish(
        record_document(
            name="first_step",
            command=f"python -m benchmarks.first_step --rounds {arguments.rounds}",
            corpus="the embedded synthetic mini-ImageNet",
            quantities=_QUANTITIES,
            values=values,
            comparisons=[Comparison(of="ray job submit", quantity="total_seconds", to="one process alone")],
            packages=["torch", "ray"],
        )
    )
    return 0


def _measure(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Mapping[str, float]:
    """Run a command until the first step of its run, end it, and return the duration of each phase."""
    run = folder / f"run-{time.monotonic_ns()}"
    began = time.time()
    process = subprocess.Popen(
        [*command, "--run", str(run)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        driver = _wait_for(partial(_driver_of, run), process)
        first = _wait_for(lambda: _first(Steps, read_metrics(run / METRICS_JSONL)), process)
        # The kernel's start times have their own origin, accurate to a second, so only their difference is used.
        driver_began = began + driver.create_time() - psutil.Process(process.pid).create_time()
        driver.terminate()  # it stops at a checkpoint
        process.wait()
    finally:
        process.kill()
        process.wait()
    launched = _wait_for(lambda: _first(Launched, read_launches(run / LAUNCHES_JSONL)), process)
    started = _wait_for(lambda: _first(Started, read_metrics(run / METRICS_JSONL)), process)
    times = [began, driver_began, launched.time, started.time, first.time]
    parts = [after - before for before, after in itertools.pairwise(times)]
    return dict(zip(_QUANTITIES, [*parts, times[-1] - times[0]], strict=True))


def _wait_for(find: Callable[[], Found | None], process: "subprocess.Popen[bytes]") -> Found:
    """Poll until `find` returns something, and return that."""
    while (found := find()) is None:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode} before its first step")
        time.sleep(_POLL_SECONDS)
    return found


def _driver_of(run: Path) -> psutil.Process | None:
    """Return the process that runs jobs/train.py."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(run) in words and words[1:2] == ["jobs/train.py"]:
            return process
    return None


def _first(line_type: type[LineT], lines: list[Line]) -> LineT | None:
    """Return the first line of a kind in a log."""
    return next(iter(only(line_type, lines)), None)


if __name__ == "__main__":
    run_command(main)
