"""The tests of the Triton kernels, run in Triton's interpreter: without a GPU, and with the same arithmetic."""

import os
import subprocess
import sys

import pytest

from pipeline.paths import CHECKOUT


@pytest.mark.slow  # 40 s
@pytest.mark.parametrize("path", ["model/test_lrn", "model/test_dropout", "pipeline/online/test_crop"])
def test_kernels_in_the_interpreter(path: str) -> None:
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        f"tests/{path}_triton.py",
    ]
    answer = subprocess.run(
        command,
        cwd=CHECKOUT,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0 and "skipped" not in answer.stdout, answer.stdout + answer.stderr
