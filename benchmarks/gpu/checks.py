"""The list of checks, the most valuable first.

A check's module is imported in the check's own process, so a failing import fails only that check.
"""

import functools
import importlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.gpu.trial import Failed, Trial

Phase = Literal["compute", "dali"]


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: Name on the command line.
        run: Function that notes figures and raises an error if something is wrong. Another process must find it: it is
            a module's function, or `functools.partial` of one.
        phase: `compute` needs only torch, `dali` needs DALI too.
        seconds: Planned duration on an H100 with 16 cores, in seconds. No further case begins after it.
        needs_data: True if the check reads the datasets.
    """

    name: str
    run: Callable[[Trial], None]
    phase: Phase
    seconds: float
    needs_data: bool = False


def find_gpu(trial: Trial) -> None:
    """Use the GPU once."""
    import torch

    torch.zeros(1, device=trial.device).item()


def make_datasets(trial: Trial) -> None:
    """Make the datasets by their command; a dry run makes few pictures."""
    command = [sys.executable, "-m", "benchmarks.gpu.datasets", str(trial.data)]
    few = ["--train-per-class", "6", "--val-per-class", "2"] if trial.is_dry else []
    status = subprocess.run([*command, *few]).returncode
    if status:
        raise Failed(f"`{shlex.join(command)}` ended with status {status}; see log.txt")


def _run_named(module: str, function: str, trial: Trial) -> None:
    getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(trial)


def _check(module: str, name: str, phase: Phase, seconds: float, needs_data: bool = False) -> Check:
    return Check(name, functools.partial(_run_named, module, f"check_{name}"), phase, seconds, needs_data)


DATASETS = Check("datasets", make_datasets, "dali", 30)
CHECKS = {
    check.name: check
    for check in (
        _check("machine", "machine", "compute", 8),
        _check("steps", "step", "compute", 40),
        _check("layers", "lrn", "compute", 8),
        _check("layers", "dropout", "compute", 6),
        _check("decoding", "dali", "dali", 8),
        _check("decoding", "parity", "dali", 18, needs_data=True),
        _check("end_to_end", "end_to_end", "dali", 62, needs_data=True),
        _check("soaks", "soak", "dali", 10, needs_data=True),
        _check("soaks", "cache", "dali", 10, needs_data=True),
        _check("loaders", "loader", "dali", 40, needs_data=True),
        _check("training", "sync", "dali", 8, needs_data=True),
        _check("training", "memory", "dali", 14, needs_data=True),
        _check("own_tests", "pytest", "dali", 22),
        _check("training", "train", "dali", 20, needs_data=True),
        _check("training", "evaluate", "dali", 12, needs_data=True),
        _check("steps", "profile", "compute", 8),
        _check("process_group", "ddp", "compute", 6),
        _check("steps", "compile", "compute", 14),
    )
}
