"""Checks for a GPU that fail in every way, for tests: run as a file, the command `benchmarks.gpu` with these checks."""

import os
import signal
import subprocess
import sys
import time

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.checks import Check
from benchmarks.gpu.trial import Failed, Trial


def fails(trial: Trial) -> None:
    """Find something wrong."""
    trial.note("found", 1 / 3)
    raise Failed("the pictures differ")


def lacks_a_module(trial: Trial) -> None:
    """Import what is not there."""
    import no_such_module  # noqa: F401


def crashes(trial: Trial) -> None:
    """Die of a signal."""
    trial.note("found", "something")
    os.kill(os.getpid(), signal.SIGSEGV)


def exits(trial: Trial) -> None:
    """End the process without a word."""
    os._exit(7)


def hangs(trial: Trial) -> None:
    """Start a process and wait for ever, deaf to all signals but one."""
    trial.note("child", subprocess.Popen(["sleep", "1000"]).pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def leaves_a_process(trial: Trial) -> None:
    """End with a child that goes on."""
    trial.note("child", subprocess.Popen(["sleep", "1000"]).pid)


def works(trial: Trial) -> None:
    """Find nothing wrong."""
    sys.stdout.write("a word for the log\n")
    trial.note("is dry", trial.is_dry)


ODD = (fails, lacks_a_module, crashes, exits, hangs, leaves_a_process, works)

if __name__ == "__main__":
    command.CHECKS.clear()
    command.CHECKS.update({run.__name__: Check(run.__name__, run, "compute", 3 if run is hangs else 60) for run in ODD})
    command._DRY_RUN_FACTOR = command._LEAST_SECONDS = command._LIMIT_FACTOR = 1
    command._LIMIT_ADDED = 0
    sys.exit(command.main(sys.argv[1:]))
