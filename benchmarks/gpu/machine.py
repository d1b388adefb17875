"""Check of the machine: its parts, and the limits of its speed."""

import ctypes
import importlib
import os

import torch

from benchmarks.gpu.card import describe_card
from benchmarks.gpu.record import PACKAGES
from benchmarks.gpu.timing import gpu_milliseconds, seconds_per_step
from benchmarks.gpu.trial import Trial, describe
from benchmarks.record import environment

# Of the driver; nvJPEG reaches the JPEG engines of a card through the last one.
_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1", "libnvcuvid.so.1")
_MATRIX_SIDE = 8192
_NUM_LAUNCHES = 100


def check_machine(trial: Trial) -> None:
    """Note versions and the driver's libraries, then the speed of memory, bus, matrix products and kernel launches."""
    trial.note("environment", environment(PACKAGES))
    trial.note("cores that this process may use", len(os.sched_getaffinity(0)))
    for library in _LIBRARIES:
        trial.note(library, _loads(library))
    trial.note("numba.cuda, which DALI imports", _imports("numba.cuda"))
    device = trial.device
    if device.type == "cuda":
        trial.note("card", describe_card())
    scale = 10 if trial.is_dry else 0  # in powers of two
    big = torch.empty(1 << (30 - scale), dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    trial.note("device copy TB/s, read and written", 2 * big.numel() / gpu_milliseconds(lambda: other.copy_(big)) / 1e9)
    target = big[: 1 << (28 - scale)]
    for kind in ("pinned", "pageable"):
        host = torch.ones(target.numel(), dtype=torch.uint8, pin_memory=kind == "pinned" and device.type == "cuda")

        def transfer(host: torch.Tensor = host) -> torch.Tensor:
            return target.copy_(host, non_blocking=True)

        trial.note(f"{kind} memory to device GB/s", host.numel() / seconds_per_step(transfer, trial.seconds / 4) / 1e9)
    side = _MATRIX_SIDE >> scale // 2
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    trial.note("bfloat16 matrix product TFLOP/s", 2 * side**3 / gpu_milliseconds(lambda: left @ right) / 1e9)
    one = torch.zeros(1, device=device)

    def launch() -> None:
        for _ in range(_NUM_LAUNCHES):
            one.add_(1)

    trial.note("microseconds per kernel launch", 1e6 * seconds_per_step(launch, trial.seconds / 4) / _NUM_LAUNCHES)


def _loads(library: str) -> str:
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return f"missing: {error}"
    return "there"


def _imports(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:
        return describe(error)
    return "imports"
