"""Checks in processes of their own: a library that crashes, hangs or takes seconds to load harms no other check.

Several run at the same time. Each runs `jobs/checks/probe.py`, whose last line of output is its answer.
"""

import json
import os
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

from pipeline.command import UserError
from pipeline.paths import CHECKOUT

_SECONDS = 90.0  # for a cold disk; usually they take two or three


class ProbeError(UserError):
    """A probe found that what it tried does not work."""


class Probe:
    """A probe that runs in the background from its construction on; leaving its block ends it."""

    def __init__(self, *words: str) -> None:
        """Start it.

        Args:
            words: Name of the probe, see `probe.py`, and its arguments.
        """
        self._deadline = time.monotonic() + _SECONDS
        self._answer: dict[str, Any] | None = None
        path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "jobs.checks.probe", *words],  # -P: never the code of the working directory
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the doctor, which ends its probes
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the probe, and return what it found.

        Raises:
            ProbeError: It failed, crashed, or did not answer in time.
        """
        if self._answer is not None:
            return self._answer
        try:
            output, errors = self._process.communicate(timeout=max(1.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ProbeError(f"did not answer within {_SECONDS:g} s; try again on an idle machine") from None
        if self._process.returncode < 0:
            raise ProbeError(
                f"crashed (signal {-self._process.returncode}); install the packages anew: make clean setup"
            )
        try:
            answer: dict[str, Any] = json.loads(output.strip().rpartition("\n")[2])
        except ValueError:
            last = (errors.strip() or output.strip() or "it said nothing").rpartition("\n")[2]
            raise ProbeError(f"ended with status {self._process.returncode}: {last}") from None
        if "error" in answer:
            raise ProbeError(answer["error"])
        self._answer = answer
        return answer

    def __enter__(self) -> "Probe":
        """Begin the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the probe, if it still runs."""
        self._process.kill()
        self._process.communicate()
