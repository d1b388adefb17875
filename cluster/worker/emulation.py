"""Which nodes emulate bfloat16, as far as it can be told without torch, which takes seconds to load.

For this process's own device, `cluster/worker/precision.py` finds out; on a CPU, by a trial.
"""

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass

from pipeline.system.processor import Processor, this_processor

NATIVE_CAPABILITY = 8  # of NVIDIA GPUs: Ampere
_CLEAR_SLOWDOWN = 1.5  # above it, a CPU surely has no such instructions in use
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
        device: In words: `this machine's CPU`, `node 10.0.0.2`.
        slowdown: Time of bfloat16 to that of float32, measured; None: not measured.
        cause: How it is known, where it was not measured.
    """

    device: str
    slowdown: float | None = None
    cause: str = ""

    @property
    def effect(self) -> str:
        """What the device does, in words."""
        if self.slowdown is not None and self.slowdown < _CLEAR_SLOWDOWN:
            return "computes in bfloat16 no faster than in float32"
        how = f"up to {self.slowdown:.0f} times slower than float32" if self.slowdown else self.cause
        return f"emulates bfloat16{how and f', {how}'}"

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.device} {self.effect}"


@dataclass(frozen=True)
class Trial:
    """What a trial on a processor found, which holds for all of its kind with the same limits.

    Attributes:
        processor: Its kind.
        emulation: None where it computes natively.
    """

    processor: Processor
    emulation: Emulation | None


def node_emulation(name: str, num_gpus: int, known: Trial | None) -> Emulation | None:
    """Return how the node that this runs on emulates bfloat16, or None where its workers compute in it natively.

    Args:
        name: Of the node, in words.
        num_gpus: That its workers take; 0: they compute on the CPU.
        known: A trial elsewhere, which is not made again on a processor of the same kind.
    """
    if num_gpus:
        return _gpu_emulation(name, _compute_capabilities())
    if known is None or known.processor != this_processor():
        from cluster.worker.precision import try_processor  # here: it loads torch

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
    """Return those of this node's GPUs, by NVIDIA's tool, else by torch; none where neither tells.

    Torch runs in a process of its own, since Ray hides all GPUs from a task that reserves none.
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
