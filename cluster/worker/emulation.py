"""Which nodes emulate bfloat16, found out without loading torch, if possible, since that takes seconds.

`cluster/worker/precision.py` tests the device of this process; on a CPU, by a trial.
"""

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass

from pipeline.system.processor import Processor, this_processor

NATIVE_CAPABILITY = 8  # lowest compute capability of NVIDIA GPUs with bfloat16: Ampere
_CLEAR_SLOWDOWN = 1.5  # a larger slowdown proves that a CPU does not use bfloat16 instructions
_NVIDIA_QUERY = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
_TORCH_QUERY = """
import torch
for index in range(torch.cuda.device_count()):
    print("{}.{}".format(*torch.cuda.get_device_capability(index)))
"""
_QUERY_SECONDS = 30.0


@dataclass(frozen=True)
class Emulation:
    """A device on which bfloat16 gains nothing: it lacks the instructions, or the libraries do not use them.

    Attributes:
        device: Readable name of the device: `this machine's CPU`, `node 10.0.0.2`.
        slowdown: Measured ratio of the time in bfloat16 to the time in float32; None: not measured.
        cause: Grounds for the emulation if it was not measured.
    """

    device: str
    slowdown: float | None = None
    cause: str = ""

    @property
    def effect(self) -> str:
        """What the device does, as a phrase for a message."""
        if self.slowdown is not None and self.slowdown < _CLEAR_SLOWDOWN:
            return "computes in bfloat16 no faster than in float32"
        how = f"up to {self.slowdown:.0f} times slower than float32" if self.slowdown else self.cause
        return f"emulates bfloat16{how and f', {how}'}"

    def __str__(self) -> str:
        """Return the device and its effect as a phrase for a message."""
        return f"{self.device} {self.effect}"


@dataclass(frozen=True)
class Trial:
    """Result of a trial on a processor, valid for all processors of the same kind with the same limits.

    Attributes:
        processor: Kind of the processor.
        emulation: Emulation of bfloat16; None if bfloat16 is supported natively.
    """

    processor: Processor
    emulation: Emulation | None


def node_emulation(name: str, num_gpus: int, known: Trial | None) -> Emulation | None:
    """Return how this node emulates bfloat16, or None if its workers support bfloat16 natively.

    Args:
        name: Readable name of the node.
        num_gpus: Number of GPUs used by the node's workers; 0: they compute on the CPU.
        known: Trial made elsewhere, which is not repeated on a processor of the same kind.
    """
    if num_gpus:
        return _gpu_emulation(name, _compute_capabilities())
    if known is None or known.processor != this_processor():
        from cluster.worker.precision import try_processor  # imported here: it loads torch

        known = try_processor()
    return None if known.emulation is None else dataclasses.replace(known.emulation, device=name)


def _gpu_emulation(name: str, capabilities: list[str]) -> Emulation | None:
    if not capabilities:
        return Emulation(name, cause="by what is known: its GPU could not be identified")
    least = min(capabilities, key=lambda capability: [int(part) for part in capability.split(".")])
    return Emulation(name, cause=f"as GPUs of compute capability {least} do") if is_old(least) else None


def is_old(capability: str) -> bool:
    """Return whether a GPU of a compute capability such as `7.5` has no instructions for bfloat16."""
    return int(capability.partition(".")[0]) < NATIVE_CAPABILITY


def _compute_capabilities() -> list[str]:
    """Return the compute capabilities of this node's GPUs, from NVIDIA's tool or else from torch; empty if both fail.

    Torch runs in a separate process, since Ray hides all GPUs from a task that reserves none.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    for query in (_NVIDIA_QUERY, [sys.executable, "-c", _TORCH_QUERY]):
        try:
            answer = subprocess.run(
                query, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True, env=environment
            )
        except (OSError, subprocess.SubprocessError):
            continue
        found = [line.strip() for line in answer.stdout.splitlines()]
        if capabilities := [line for line in found if line.replace(".", "", 1).isdigit()]:
            return capabilities
    return []
