"""Where Triton's kernels run in a test: on the GPU, or on the CPU by Triton's interpreter.

The interpreter must be chosen before Triton is imported. So these tests are marked `gpu`, and
`tests/project/test_triton_interpreted.py` runs them once more, in a process with TRITON_INTERPRET=1.
"""

import os

import numpy as np
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")


def _convert_as_gpus_do() -> None:
    """Let the interpreter convert bfloat16 by torch; its own conversion truncates, and shifts subnormal numbers."""
    from triton import language
    from triton.runtime import interpreter

    def convert(values: np.ndarray, source: language.dtype, target: language.dtype, mode: object) -> np.ndarray:
        assert {source, target} == {language.float32, language.bfloat16}
        if target == language.bfloat16:
            return torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16).float().numpy()

    interpreter._convert_float = convert


if IS_INTERPRETED:
    _convert_as_gpus_do()
