"""The list of checks, the most valuable first.

Each function here imports its check's module in the check's own process, so a failing import fails only that check.
"""

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
        run: Function that notes figures and raises an error if something is wrong. It must be a module's function,
            so that another process finds it.
        phase: `compute` needs only torch, `dali` needs DALI too.
        limit_seconds: Time after which the process is killed, in seconds.
        needs_data: True if the check reads the datasets.
    """

    name: str
    run: Callable[[Trial], None]
    phase: Phase
    limit_seconds: float
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


def _machine(trial: Trial) -> None:
    from benchmarks.gpu.machine import check_machine

    check_machine(trial)


def _step(trial: Trial) -> None:
    from benchmarks.gpu.steps import check_step

    check_step(trial)


def _lrn(trial: Trial) -> None:
    from benchmarks.gpu.layers import check_lrn

    check_lrn(trial)


def _dropout(trial: Trial) -> None:
    from benchmarks.gpu.layers import check_dropout

    check_dropout(trial)


def _dali(trial: Trial) -> None:
    from benchmarks.gpu.decoding import check_dali

    check_dali(trial)


def _parity(trial: Trial) -> None:
    from benchmarks.gpu.decoding import check_parity

    check_parity(trial)


def _soak(trial: Trial) -> None:
    from benchmarks.gpu.loaders import check_soak

    check_soak(trial)


def _loader(trial: Trial) -> None:
    from benchmarks.gpu.loaders import check_loader

    check_loader(trial)


def _train(trial: Trial) -> None:
    from benchmarks.gpu.training import check_train

    check_train(trial)


def _pytest(trial: Trial) -> None:
    from benchmarks.gpu.own_tests import check_pytest

    check_pytest(trial)


def _sync(trial: Trial) -> None:
    from benchmarks.gpu.training import check_sync

    check_sync(trial)


def _evaluate(trial: Trial) -> None:
    from benchmarks.gpu.training import check_evaluate

    check_evaluate(trial)


def _profile(trial: Trial) -> None:
    from benchmarks.gpu.steps import check_profile

    check_profile(trial)


def _ddp(trial: Trial) -> None:
    from benchmarks.gpu.process_group import check_ddp

    check_ddp(trial)


def _compile(trial: Trial) -> None:
    from benchmarks.gpu.steps import check_compile

    check_compile(trial)


CHECKS = {
    check.name: check
    for check in (
        Check("machine", _machine, "compute", 40),
        Check("step", _step, "compute", 100),
        Check("lrn", _lrn, "compute", 40),
        Check("dropout", _dropout, "compute", 30),
        Check("dali", _dali, "dali", 60),
        Check("parity", _parity, "dali", 90, needs_data=True),
        Check("soak", _soak, "dali", 40, needs_data=True),
        Check("loader", _loader, "dali", 110, needs_data=True),
        Check("train", _train, "dali", 150, needs_data=True),
        Check("pytest", _pytest, "dali", 90),
        Check("sync", _sync, "dali", 40, needs_data=True),
        Check("evaluate", _evaluate, "dali", 60, needs_data=True),
        Check("profile", _profile, "compute", 40),
        Check("ddp", _ddp, "compute", 40),
        Check("compile", _compile, "compute", 120),
    )
}
