"""A machine with a GPU may lack Ray: the tests marked `gpu` are collected there all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.paths import CHECKOUT

TESTS = CHECKOUT / "tests"
PLUGIN = 'import sys\nsys.modules["ray"] = None\n'  # importing it fails as if it were not installed


@pytest.mark.slow
def test_the_tests_for_a_gpu_are_collected_without_ray(tmp_path):
    (tmp_path / "without_ray.py").write_text(PLUGIN)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", "gpu", "-p", "without_ray"]
    answer = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    collected = {line.partition("::")[0] for line in answer.stdout.splitlines() if "::" in line}
    others = (path for path in TESTS.rglob("test_*.py") if path.name != Path(__file__).name)
    marked = {str(path.relative_to(CHECKOUT)) for path in others if "pytest.mark.gpu" in path.read_text()}
    assert collected == marked != set()
