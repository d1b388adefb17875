"""Checks of the project's own layers: equal to the CPU's, and their time beside torch's and the memory's."""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from benchmarks.gpu.timing import gpu_milliseconds, seconds_per_step, synchronize
from benchmarks.gpu.trial import Failed, Trial
from model.dropout import CountedDropout, keep_mask
from model.lrn import LocalResponseNorm
from model.lrn_conventions import CONVENTIONS
from model.triton_support import triton_runs_on

_CONVENTION = "printed"
_TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # relative error of a tensor; bfloat16 has 8 bits
_SHAPES = ((256, 96, 55, 55), (256, 256, 27, 27))  # inputs of the paper's two layers
# Passes over the activations, of two bytes each, that a layer needs at least, forward and backward.
_NUM_LRN_PASSES = 5
_NUM_DROPOUT_PASSES = 4
_POSITIONS = (0, 1, 2**31, 2**32 - 1, 2**40 + 7)  # at the limits of the 32-bit words that hold them
_NUM_UNITS = 4096


def check_lrn(trial: Trial) -> None:
    """Compare LRN with float64 on the CPU; note its milliseconds beside torch's, and the memory's share in them."""
    _note_triton(trial)
    generator = torch.Generator().manual_seed(0)
    activations = 30 * torch.randn(4, 96, 13, 13, generator=generator, dtype=torch.float64)
    upstream = torch.randn(activations.shape, generator=generator, dtype=torch.float64)
    wrong = []
    for dtype, tolerance in _TOLERANCES.items():
        pair = activations.to(dtype), upstream.to(dtype)
        expected = _both_ways(tensor.double() for tensor in pair)
        for layout in (torch.channels_last, torch.contiguous_format):  # by Triton, and by torch's operators
            found = _both_ways(tensor.to(trial.device).contiguous(memory_format=layout) for tensor in pair)
            errors = [((f - e).norm() / e.norm()).item() for f, e in zip(found, expected, strict=True)]
            name = f"{dtype}, {layout}: relative error forward, backward".replace("torch.", "")
            trial.note(name, errors)
            if not max(errors) < tolerance:
                wrong.append(f"{name} {errors}, not below {tolerance}")
    copied = _copied_bytes_per_millisecond(trial)
    constants = CONVENTIONS[_CONVENTION]
    theirs = nn.LocalResponseNorm(constants.size, constants.alpha * constants.size, constants.beta, constants.k)
    for shape in ((2, 96, 9, 9),) if trial.is_dry else _SHAPES:
        values = (
            torch.randn(shape, device=trial.device).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        )
        num_bytes = 2 * _NUM_LRN_PASSES * values.numel()
        trial.note(f"{shape}: GB that must move", num_bytes / 1e9)
        for name, layer in (("ours", LocalResponseNorm(_CONVENTION)), ("torch's", theirs)):
            with torch.autocast(trial.device.type, torch.bfloat16):
                milliseconds = gpu_milliseconds(_step(layer, values))
            trial.note(f"{shape} {name}: milliseconds forward and backward", milliseconds)
            trial.note(f"{shape} {name}: fraction of the rate of a copy", num_bytes / milliseconds / copied)
    if wrong:
        raise Failed("; ".join(wrong))


def check_dropout(trial: Trial) -> None:
    """Compare dropout masks with the CPU's; note kernels and milliseconds of a layer beside torch's."""
    _note_triton(trial)
    positions = torch.tensor(_POSITIONS)
    layer = CountedDropout(0.5, seed=3, layer=5)
    ones = torch.ones(len(positions), _NUM_UNITS + 1, dtype=torch.bfloat16, device=trial.device)
    kept = layer(ones, positions.to(trial.device)).cpu() != 0
    expected = keep_mask(positions, _NUM_UNITS + 1, probability=0.5, seed=3, layer=5)
    num_different = int((kept != expected).sum())
    trial.note("units whose mask differs from the CPU's", num_different)
    copied = _copied_bytes_per_millisecond(trial)
    for batch_size in (4,) if trial.is_dry else (128, 1024):
        values = torch.randn(batch_size, _NUM_UNITS, device=trial.device).to(torch.bfloat16)
        places = torch.arange(batch_size, device=trial.device)
        ours = functools.partial(layer, values, places)
        theirs = functools.partial(nn.functional.dropout, values, 0.5)
        with torch.profiler.profile() as profile:
            ours()
            synchronize()
        events = profile.key_averages()
        both_ways = gpu_milliseconds(_step(functools.partial(layer, positions=places), values))
        trial.note(
            f"batches of {batch_size}",
            {
                "milliseconds": 1000 * seconds_per_step(ours, trial.seconds / 4),
                "milliseconds on the device": gpu_milliseconds(ours),
                "milliseconds on the device, forward and backward": both_ways,
                "fraction of the rate of a copy": 2 * _NUM_DROPOUT_PASSES * values.numel() / both_ways / copied,
                "milliseconds of torch's": 1000 * seconds_per_step(theirs, trial.seconds / 4),
                "kernels": sum(e.count for e in events if e.device_type == torch.autograd.DeviceType.CUDA),
            },
        )
    if num_different:
        raise Failed(f"the masks of {num_different} units differ from the CPU's")


def _note_triton(trial: Trial) -> None:
    """Note whether Triton's kernels run; on a GPU, fail if they don't."""
    runs = triton_runs_on(trial.device)
    trial.note("Triton's kernels run", runs)
    if not runs and not trial.is_dry:
        raise Failed("Triton's kernels do not run on this GPU; log.txt has the reason")


def _step(layer: Callable[[Tensor], Tensor], values: Tensor) -> Callable[[], None]:
    """Return a function that runs a layer forward and backward."""

    def step() -> None:
        layer(values.detach().requires_grad_()).backward(values)

    return step


def _both_ways(pair: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return LRN of the activations and their gradient, as float64 on the CPU."""
    activations, upstream = pair
    leaf = activations.clone().requires_grad_()
    result = LocalResponseNorm(_CONVENTION)(leaf)
    result.backward(upstream)
    assert leaf.grad is not None
    return result.detach().double().cpu(), leaf.grad.double().cpu()


def _copied_bytes_per_millisecond(trial: Trial) -> float:
    """Return the bytes read and written per millisecond when the device copies its own memory."""
    source = torch.empty(1 << (20 if trial.is_dry else 30), dtype=torch.uint8, device=trial.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / gpu_milliseconds(lambda: target.copy_(source))
