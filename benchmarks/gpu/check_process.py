"""Runs a check in its own process with a time limit, so that a failure, crash or hang does not affect the next check.

The processes are forked from a server that has only imported torch, so none of them spends seconds on that import.
"""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.gpu.trial import Trial, describe
from pipeline.system.files import write_json

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch"])


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a check.

    Attributes:
        ok: True if nothing was wrong; None if the check was not run.
        error: What was wrong, or why the check was not run; empty if all was right.
        seconds: Duration.
        figures: Figures that were noted, also those before an error.
    """

    ok: bool | None
    error: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def run_check(run: Callable[[Trial], None], trial: Trial, log: Path) -> Result:
    """Run a check until the trial's deadline; all processes that it started are killed at its end.

    Args:
        run: Function of the check; it must be a module's function.
        trial: Trial whose scratch folder exists and is empty.
        log: File that gets the output of the check and its commands.
    """
    began = time.monotonic()
    process = _CONTEXT.Process(target=_work, args=(run, trial, log))
    process.start()
    try:
        process.join(trial.deadline - began)
    finally:
        is_late = process.is_alive()
        _end(process)
    seconds = round(time.monotonic() - began, 1)
    figures = json.loads(trial.figures_path.read_text()) if trial.figures_path.exists() else {}
    outcome = _outcome_path(trial)
    if outcome.exists():
        error = json.loads(outcome.read_text())["error"]
    elif is_late:
        error = f"killed at its limit of {trial.deadline - began:.0f} s"
    else:
        error = f"its process ended {_describe_exit(process.exitcode)}; see {log.name}"
    return Result(ok=not error, error=error, seconds=seconds, figures=figures)


def _end(process: BaseProcess) -> None:
    """Kill the session of a check with all processes in it, or the check itself if it has no session yet."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _work(run: Callable[[Trial], None], trial: Trial, log: Path) -> None:
    """Run a check in this process, then exit without the libraries' cleanup, which may hang."""
    os.setsid()
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    error = ""
    try:
        run(trial)
    except BaseException as raised:
        traceback.print_exc()
        error = describe(raised)
    write_json(_outcome_path(trial), {"error": error})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _outcome_path(trial: Trial) -> Path:
    return trial.scratch / "outcome.json"


def _describe_exit(status: int | None) -> str:
    return f"by {signal.Signals(-status).name}" if status is not None and status < 0 else f"with status {status}"
