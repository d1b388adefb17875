"""What the compilers make of the kernel that makes images, for GPUs that are not there."""

import itertools
import re
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from triton_compilation import assembler_report, compiled_for

from pipeline.online import crop_triton
from pipeline.online.crop_triton import CropKernel

CPU = torch.device("cpu")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_nothing_is_fused_that_the_reference_rounds(capability, tmp_path):
    mean_image, pixels = np.zeros((256, 256, 3), dtype=np.float32), torch.zeros(2, 256, 256, 3, dtype=torch.uint8)
    placement, mean, rows = torch.zeros(2, 1, 3, dtype=torch.int32), torch.zeros(2, 3), torch.arange(2)
    with compiled_for(capability, tmp_path) as kernels:
        for layout, cached in itertools.product(("NCHW", "NHWC"), (False, True)):
            settings = (224, np.ones(3, dtype=np.float32), mean_image if cached else None, "float32", layout, CPU)
            CropKernel(*settings)(pixels, rows if cached else None, placement, mean)
    assert len(kernels) == 4
    for kernel in kernels:
        ptx = kernel.asm["ptx"]
        assert "fma.rn.f32" not in ptx and kernel.metadata.shared == 0
        assert len(re.findall(r"\bdiv\.", ptx)) <= 1  # by the number of crops: the others are multiplications
        assert "0 bytes spill stores, 0 bytes spill loads" in assembler_report(kernel, capability)


def test_where_it_cannot_run_a_warning_says_so_once():
    crop_triton.works_on.cache_clear()
    with pytest.warns(UserWarning, match=r"Triton can't be used \(.*\), so DALI normalises: it needs a C compiler"):
        assert not crop_triton.works_on(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not crop_triton.works_on(0)
    crop_triton.works_on.cache_clear()
