"""`make test` runs the tests that need a GPU where the machine has one; Python is replaced by a script that answers."""

import os
import subprocess
import sys

import pytest

from pipeline.paths import CHECKOUT

# Notes its arguments. Asked by `-c` for a GPU, it answers with the status that the test states.
PYTHON = """#!/bin/sh
case "$1" in
-c) exit "$HAS_NO_GPU";;
*) echo "$*" >> "$NOTED";;
esac
"""
SUITE, GPU = "-m pytest -n auto", "-m pytest -m gpu"


@pytest.mark.parametrize(
    ("has_no_gpu", "options", "expected"),
    [
        (1, [], [SUITE]),
        (0, [], [SUITE, GPU]),
        (0, ["PYTEST_ARGS=-m slow"], ["-m pytest -m slow"]),
        (1, ["PYTEST_ARGS=-m slow"], ["-m pytest -m slow"]),
    ],
)
def test_the_tests_for_a_gpu_follow_where_there_is_one(has_no_gpu, options, expected, tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTEST"))}
    answer = subprocess.run(
        # Only the recipe of `test` runs: with -o, .venv/ready counts as up to date whether it exists or not.
        ["make", "-o", ".venv/ready", "test", f"BIN={tmp_path}", *options],
        cwd=CHECKOUT,
        env=environment | {"HAS_NO_GPU": str(has_no_gpu), "NOTED": str(tmp_path / "noted")},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "noted").read_text().splitlines() == expected


@pytest.mark.parametrize(
    ("options", "visible"), [([], ""), pytest.param(["-m", "slow"], "", marks=pytest.mark.slow), (["-m", "gpu"], "7")]
)
def test_only_the_tests_for_a_gpu_see_one(options, visible, tmp_path):
    (tmp_path / "asked.py").write_text(
        "import os\n\n\ndef pytest_collection_finish():\n    print('visible:', os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-p", "asked", *options, "tests/model/test_dropout.py"],
        cwd=CHECKOUT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "7", "PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}"},
        capture_output=True,
        text=True,
    )
    assert f"visible: {visible}\n" in answer.stdout, answer.stdout + answer.stderr
