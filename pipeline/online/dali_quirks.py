"""Everything in this project that relies on undocumented parts of DALI, as seen in DALI 2.4.

A DALI that lacks it is used without. `tests/pipeline/online/test_graph_backends.py` fails where
a DALI has changed it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali.tensors import TensorCPU, TensorListCPU

try:
    from nvidia.dali.plugin.numba import NumbaFunction
except ImportError:
    NumbaFunction = None  # type: ignore[assignment, misc]


def tensor_list(pictures: np.ndarray | Sequence[np.ndarray], layout: str) -> Any:
    """Return pictures in the form that `external_source` takes without a Python loop of its own, and without a copy."""
    if isinstance(pictures, np.ndarray):
        return TensorListCPU(pictures, layout)
    tensors = [TensorCPU(picture, layout) for picture in pictures]
    try:
        return TensorListCPU(tensors, layout, contiguous=False)  # type: ignore[call-overload]
    except TypeError:
        return tensors


def takes_compiled_functions() -> bool:
    """Return whether `compiled_function` works; if not, the graph crops with DALI's operator, which takes longer."""
    return all(hasattr(NumbaFunction, name) for name in ("_get_run_fn_cpu", "_get_setup_fn_cpu"))


def compiled_function(**options: Any) -> Any:
    """Return DALI's `numba_function` for C functions that are compiled already; DALI would compile at each start.

    Args:
        options: Options of `numba_function`; `run_fn` and `setup_fn` are C functions of Numba (`numba.cfunc`), called
            as `crop_kernel.py` describes.
    """

    class CompiledFunction(NumbaFunction):
        def _get_run_fn_cpu(self, run_fn: Any, *_: Any) -> int:
            return int(run_fn.address)

        def _get_setup_fn_cpu(self, setup_fn: Any) -> int:
            return int(setup_fn.address)

    return CompiledFunction(**options)
