"""What the compilers make of the Triton kernels, for GPUs that are not there."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from model.lrn_conventions import CONVENTIONS

pytest.importorskip("triton")
from triton_compilation import assembler_report, compiled_for

from model import dropout_triton, lrn_triton

VECTOR_LOAD, VECTOR_STORE = (re.compile(rf"{kind}\.global\S*\.v4\.b32") for kind in ("ld", "st"))
MAX_REGISTERS = 64  # for half the threads that a multiprocessor can hold


def launch_all(num_channels: int, size: int, dtype: torch.dtype, num_samples: int = 2) -> None:
    activations = torch.zeros(num_samples, num_channels, 1, 1, dtype=dtype)
    constants = asdict(CONVENTIONS["tensorflow" if size == 11 else "printed"])
    lrn_triton.normalize(activations, **constants)
    lrn_triton.differentiate(activations, activations, **constants)
    dropout_triton.drop(activations.flatten(1), torch.arange(num_samples), 2.0, 2**15, 2**40, 7, 1)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_values_move_by_vectors_and_stay_in_registers(capability: int, tmp_path: Path) -> None:
    with compiled_for(capability, tmp_path) as kernels:
        for num_channels, size in ((96, 5), (256, 11)):
            launch_all(num_channels, size, torch.bfloat16)
    # Dropout loads the position too.
    loads = [(3, 3), (6, 6), (1, 2), (3, 3), (8, 8), (1, 2)]
    for kernel, (num_vector_loads, num_loads) in zip(kernels, loads, strict=True):
        ptx = kernel.asm["ptx"]
        assert len(VECTOR_LOAD.findall(ptx)) == num_vector_loads
        assert len(re.findall(r"ld\.global", ptx)) == num_loads
        assert len(VECTOR_STORE.findall(ptx)) == len(re.findall(r"st\.global", ptx)) == 1
        assert kernel.metadata.shared == 0 and "bar.sync" not in ptx
        assert "cvt.rn.bf16x2.f32" in ptx  # rounds to the nearest even
        report = assembler_report(kernel, capability)
        assert "0 bytes spill stores, 0 bytes spill loads" in report
        assert int(re.findall(r"Used (\d+) registers", report)[0]) <= MAX_REGISTERS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_channels", [1, 7, 96])
def test_other_dtypes_and_odd_shapes_spill_nothing(dtype: torch.dtype, num_channels: int, tmp_path: Path) -> None:
    with compiled_for(90, tmp_path) as kernels:
        launch_all(num_channels, 11, dtype, num_samples=1)  # Triton compiles a size of 1 as a constant
    for kernel in kernels:
        assert "0 bytes spill stores, 0 bytes spill loads" in assembler_report(kernel, 90)
