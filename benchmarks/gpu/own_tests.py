"""Check that runs the project's tests for a GPU."""

import re
import subprocess
import sys

from benchmarks.gpu.trial import Failed, Trial
from pipeline.paths import CHECKOUT

_MARK = "pytest.mark.gpu"


def check_pytest(trial: Trial) -> None:
    """Run the tests marked `gpu`; note their number by outcome. A dry run only collects them.

    pytest.txt has the output. Only the modules with such tests are loaded: others may need libraries that the machine
    does not have.
    """
    modules = [path for path in sorted((CHECKOUT / "tests").glob("**/test_*.py")) if _MARK in path.read_text()]
    names = [str(path.relative_to(CHECKOUT)) for path in modules]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", *names]
    answer = subprocess.run(
        [*command, "--collect-only" if trial.is_dry else "-rA"], cwd=CHECKOUT, capture_output=True, text=True
    )
    (trial.out / "pytest.txt").write_text(answer.stdout + answer.stderr)
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    trial.note("modules", names)
    trial.note("status", answer.returncode)
    trial.note("says", lines[-1:])
    if answer.returncode != 0:
        causes = [line for line in lines if re.match(r"FAILED|ERROR|E  ", line)]
        raise Failed(f"pytest ended with status {answer.returncode}: " + "; ".join(causes[:8]))
