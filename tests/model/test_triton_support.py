"""Triton is used where a kernel can be launched; elsewhere training goes on, with one warning."""

import subprocess
import sys
import warnings

import pytest
import torch

from model import triton_support
from pipeline.paths import CHECKOUT

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_support._runs_on_gpu.cache_clear()
    yield
    triton_support._runs_on_gpu.cache_clear()


def test_a_kernel_that_cannot_be_launched_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(index: int) -> None:
        raise RuntimeError("Failed to find C compiler.\n  Set the CC variable.")

    monkeypatch.setattr(triton_support, "_launch", fail)
    with pytest.warns(UserWarning, match=r"cuda:0 \(RuntimeError: Failed to find C compiler\. Set the CC variable\.\)"):
        assert not triton_support.triton_runs_on(CUDA)
    with warnings.catch_warnings(action="error"):
        assert not triton_support.triton_runs_on(CUDA)


def test_a_gpu_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    monkeypatch.setattr(triton_support, "_launch", launches.append)
    assert triton_support.triton_runs_on(CUDA)
    assert triton_support.triton_runs_on(CUDA)
    assert triton_support.triton_runs_on(torch.device("cuda", 1))
    assert launches == [0, 1]
    assert not triton_support.triton_runs_on(torch.device("cpu"))


def test_without_triton_torchs_operators_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails
    for name in ("model.triton_vectors", "model.lrn_triton"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.warns(UserWarning, match="ModuleNotFoundError: import of triton halted.*install the package `triton`"):
        assert not triton_support.triton_runs_on(CUDA)


TRAIN_A_STEP = """
import sys, torch
from model.alexnet import build_model
model = build_model("alexnet_small", num_classes=3)
model(torch.zeros(2, 3, 227, 227).contiguous(memory_format=torch.channels_last), torch.arange(2)).sum().backward()
sys.stdout.write(" ".join({"triton", "torch._dynamo"} & sys.modules.keys()))
"""


def test_a_step_on_the_cpu_loads_neither_triton_nor_the_compiler() -> None:
    answer = subprocess.run([sys.executable, "-c", TRAIN_A_STEP], capture_output=True, text=True, cwd=CHECKOUT)
    assert answer.returncode == 0 and answer.stdout == "", answer.stdout + answer.stderr
