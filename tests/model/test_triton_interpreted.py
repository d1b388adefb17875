"""The tests of the Triton kernels, run in Triton's interpreter: without a GPU, and with the same arithmetic."""

import os
import subprocess
import sys

import pytest

from pipeline.paths import CHECKOUT


@pytest.mark.parametrize("name", ["lrn", "dropout"])
def test_kernels_in_the_interpreter(name: str) -> None:
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        f"tests/model/test_{name}_triton.py",
    ]
    answer = subprocess.run(
        command,
        cwd=CHECKOUT,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0 and "skipped" not in answer.stdout, answer.stdout + answer.stderr
