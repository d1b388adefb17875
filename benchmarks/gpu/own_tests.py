"""The project's own tests that are marked `gpu`."""

import re
import subprocess
import sys

from benchmarks.gpu.trial import Failed, Trial
from benchmarks.record import ROOT

_MARK = "pytest.mark.gpu"


def check_pytest(trial: Trial) -> None:
    """Run the tests marked `gpu`, which a dry run only collects; note how many there were, by outcome.

    Their output is in pytest.txt. Only the modules that hold such tests are loaded: the others may want libraries
    that a machine with a GPU lacks.
    """
    modules = [path for path in sorted((ROOT / "tests").glob("**/test_*.py")) if _MARK in path.read_text()]
    names = [str(path.relative_to(ROOT)) for path in modules]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", *names]
    answer = subprocess.run(
        [*command, "--collect-only" if trial.is_dry else "-rA"], cwd=ROOT, capture_output=True, text=True
    )
    (trial.out / "pytest.txt").write_text(answer.stdout + answer.stderr)
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    trial.note("modules", names)
    trial.note("status", answer.returncode)
    trial.note("says", lines[-1:])
    if answer.returncode != 0:
        causes = [line for line in lines if re.match(r"FAILED|ERROR|E  ", line)]
        raise Failed(f"pytest ended with status {answer.returncode}: " + "; ".join(causes[:8]))
