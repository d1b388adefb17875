"""A check in a process and a time limit of its own, so that one that fails, crashes or hangs does not hinder the next.

The processes are forked from one that has imported torch and nothing else: it has no threads, and has not touched the
GPU.
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
    """What became of a check.

    Attributes:
        ok: It found nothing wrong; None: it was not run.
        error: What is wrong, or why it was not run.
        seconds: That it took.
        figures: Those noted to the end, or until then.
    """

    ok: bool | None
    error: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def run_check(run: Callable[[Trial], None], trial: Trial, log: Path) -> Result:
    """Run a check until the trial's deadline; whatever it started is ended with it.

    Args:
        run: The check; a function of a module.
        trial: Its scratch folder is there, and empty.
        log: What the check and its commands print is added to this file.
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
        error = f"ended after its {trial.deadline - began:.0f} s"
    else:
        error = f"its process ended by itself, {_describe_exit(process.exitcode)}; {log.name} has its words"
    return Result(ok=not error, error=error, seconds=seconds, figures=figures)


def _end(process: BaseProcess) -> None:
    """Kill a check's session, in which is whatever it started; and itself, if it had none yet."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _work(run: Callable[[Trial], None], trial: Trial, log: Path) -> None:
    """Run a check in this process, and end it without what libraries do at their end, which may hang."""
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
