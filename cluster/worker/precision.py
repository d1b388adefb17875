"""The meaning of a recipe's `precision`, and the choice of one that fits the hardware.

`bfloat16` is autocast: weights and inputs stay float32. On a GPU, float32 means float32 in every recipe: TF32, cuDNN's
default for convolutions, keeps only 10 of the 23 bits of a fraction. In a bfloat16 recipe, what remains in float32
needs its bits: the sums of response normalisation, the loss, and the update of the weights.

`auto` is bfloat16 if every device of a run supports it natively, else float32. A GPU does from compute capability 8 on.
A CPU does if it has the instructions and the libraries use them. Only a short trial shows this: the libraries' own
flags ignore limits (a container's DNNL_MAX_CPU_ISA).
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from cluster.run.config import Precision
from cluster.worker.emulation import Emulation, Trial, is_old
from cluster.worker.world import World
from pipeline.system.processor import this_processor

_BATCH_SIZE, _CHANNELS, _SIDE, _UNITS = 8, 64, 26, 512  # sizes in the trial; if emulated, one round takes about 0.1 s
_LEAST_ROUNDS, _TRIAL_SECONDS = 3, 0.5


def input_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of the weights and images."""
    return torch.float64 if precision == "float64" else torch.float32


def place(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """Move a model to a device in the form that a precision asks for, and forbid TF32 in this process.

    Every model that is trained, evaluated or used for predictions passes through here.

    Args:
        model: Model to move, in place.
        precision: Precision of the run.
        device: Device to move it to.

    Returns:
        The model, with weights in `input_dtype`, channels last.
    """
    # The older form of the same settings, which torch's compiler reads, must agree with the newer.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # its stubs lack it
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    # Two calls: one that changes dtype and memory format keeps the format of tensors that are on the device already.
    return model.to(device, input_dtype(precision)).to(memory_format=torch.channels_last)


def forward_context(precision: Precision, device: torch.device) -> AbstractContextManager[torch.autocast | None]:
    """Return the context for the model's forward pass.

    Raises:
        ValueError: The precision is `auto`, which must be resolved first.
    """
    if precision == "auto":
        raise ValueError("precision='auto': must be resolved before a model runs")
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@dataclass(frozen=True)
class Choice:
    """The precision of a run, and the reason for it.

    Attributes:
        precision: Resolved precision.
        reason: Reason why `auto` was not resolved to bfloat16, or empty.
        warnings: Warnings for a person.
    """

    precision: Precision
    reason: str = ""
    warnings: tuple[str, ...] = ()


def choose_precision(requested: Precision, recorded: Precision | None, emulations: Sequence[Emulation]) -> Choice:
    """Return a run's precision.

    Args:
        requested: Precision in the recipe.
        recorded: Precision recorded by the run that is resumed, which keeps it; None: a new run.
        emulations: Devices that may get a worker and would emulate bfloat16.
    """
    if requested == "auto" and recorded is None:
        if not emulations:
            return Choice("bfloat16")
        return Choice("float32", str(max(emulations, key=lambda emulation: emulation.slowdown or 0)))
    precision = recorded if requested == "auto" and recorded is not None else requested
    if precision != "bfloat16":
        return Choice(precision)
    way_out = "use --precision float32, or auto"
    if recorded:
        way_out = "resume it on machines that compute in it natively, or begin another --run with --precision float32"
    return Choice(precision, warnings=tuple(f"{emulation}; {way_out}" for emulation in emulations))


def fitting_precision(recorded: Precision, emulations: Sequence[Emulation]) -> Precision:
    """Return the precision in which to use a trained model: the run's, or float32 if that would be emulated.

    If it is not the run's, a message on standard output says so.

    Args:
        recorded: Precision recorded by the run.
        emulations: Devices to be used that would emulate bfloat16.
    """
    if recorded != "bfloat16" or not emulations:
        return recorded
    sys.stdout.write(f"{emulations[0]}: computing in float32, the run was trained in bfloat16\n")
    sys.stdout.flush()
    return "float32"


def fitting_precision_here(recorded: Precision, device: torch.device) -> Precision:
    """Return `fitting_precision` for this process's device, which is tested only if the answer depends on it."""
    emulation = bfloat16_emulation(device) if recorded == "bfloat16" else None
    return fitting_precision(recorded, [] if emulation is None else [emulation])


def bfloat16_emulation(device: torch.device) -> Emulation | None:
    """Return how this process's device emulates bfloat16, or None if it supports bfloat16 natively."""
    if device.type == "cuda":
        capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
        cause = f"as GPUs of compute capability {capability} do"
        return Emulation("this machine's GPU", cause=cause) if is_old(capability) else None
    return try_processor().emulation


def try_processor() -> Trial:
    """Test whether this machine's CPU emulates bfloat16."""
    processor, slowdown = this_processor(), bfloat16_slowdown()
    is_native = processor.has_bfloat16 and slowdown <= 1
    return Trial(processor, None if is_native else Emulation("this machine's CPU", max(1.0, slowdown)))


def emulations_of_all(world: World) -> list[Emulation]:
    """Return the workers whose devices emulate bfloat16; every worker calls this and gets the same answer."""
    own = bfloat16_emulation(world.device)
    known_R2 = torch.zeros(world.world_size, 2, dtype=torch.float64)
    if own is not None:
        known_R2[world.rank] = torch.tensor([1.0, own.slowdown or 0.0])
    return [
        Emulation("this machine" if world.world_size == 1 else f"worker {rank}", slowdown or None)
        for rank, (emulates, slowdown) in enumerate(world.sum(known_R2).tolist())
        if emulates
    ]


def bfloat16_slowdown() -> float:
    """Return the ratio of the time in bfloat16 to the time in float32 on this CPU.

    Measured with a convolution, forward and backward, and a matrix product, both similar to the nets'; the larger ratio
    counts. Other processes can make a step slower but never faster, so the shortest times count, with one thread. While
    bfloat16 is slower, the measurement is repeated for half a second.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = [(_convolution(dtype), _product(dtype)) for dtype in (torch.float32, torch.bfloat16)]
        for step in steps[0] + steps[1]:
            step()  # the first call chooses the kernels
        shortest = [[math.inf, math.inf], [math.inf, math.inf]]  # by dtype, then by step
        began, num_rounds = time.perf_counter(), 0
        while True:
            for times, of_dtype in zip(shortest, steps, strict=True):
                times[:] = [min(before, _seconds(step)) for before, step in zip(times, of_dtype, strict=True)]
            num_rounds += 1
            slowdown = max(bfloat16 / float32 for float32, bfloat16 in zip(*shortest, strict=True))
            is_over = slowdown <= 1 or time.perf_counter() - began > _TRIAL_SECONDS
            if num_rounds >= _LEAST_ROUNDS and is_over:
                return slowdown
    finally:
        torch.set_num_threads(num_threads)


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _convolution(dtype: torch.dtype) -> Callable[[], object]:
    layout = torch.channels_last
    images = torch.ones(_BATCH_SIZE, _CHANNELS, _SIDE, _SIDE, dtype=dtype).to(memory_format=layout)
    weights = torch.ones(_CHANNELS, _CHANNELS, 3, 3, dtype=dtype).to(memory_format=layout).requires_grad_()
    return lambda: functional.conv2d(images, weights, padding=1).sum().backward()


def _product(dtype: torch.dtype) -> Callable[[], object]:
    matrix = torch.ones(_UNITS, _UNITS, dtype=dtype)
    return lambda: matrix @ matrix
