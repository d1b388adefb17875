"""Checks of the project's own layers: equal to the CPU's, and their time beside torch's."""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from benchmarks.gpu.timing import gpu_milliseconds, seconds_per_step, synchronize
from benchmarks.gpu.trial import Failed, Trial
from model.dropout import CountedDropout, keep_mask
from model.lrn import LocalResponseNorm
from model.lrn_conventions import CONVENTIONS

_CONVENTION = "printed"
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3}  # relative error of a tensor; bfloat16 has 8 bits
_SHAPES = ((256, 96, 55, 55), (256, 256, 27, 27))  # inputs of the paper's two layers
_NUM_PASSES = 5  # over the activations, of two bytes each, that LRN needs at least, forward and backward
_POSITIONS = (0, 1, 2**31, 2**32 - 1, 2**40 + 7)  # at the limits of the 32-bit words that hold them
_NUM_UNITS = 4096


def check_lrn(trial: Trial) -> None:
    """Compare LRN with float64 on the CPU, with and without TF32; note its milliseconds beside torch's."""
    generator = torch.Generator().manual_seed(0)
    activations = 30 * torch.randn(4, 96, 13, 13, generator=generator, dtype=torch.float64)
    upstream = torch.randn(activations.shape, generator=generator, dtype=torch.float64)
    wrong = []
    for dtype, tolerance in _TOLERANCES.items():
        pair = activations.to(dtype), upstream.to(dtype)
        expected = _both_ways(tensor.double() for tensor in pair)
        for allows_tf32 in (True, False):
            torch.backends.cudnn.allow_tf32 = allows_tf32
            found = _both_ways(tensor.to(trial.device).contiguous(memory_format=torch.channels_last) for tensor in pair)
            errors = [((f - e).norm() / e.norm()).item() for f, e in zip(found, expected, strict=True)]
            name = f"{dtype}, TF32 {'on' if allows_tf32 else 'off'}: relative error forward, backward".removeprefix(
                "torch."
            )
            trial.note(name, errors)
            if not max(errors) < tolerance:
                wrong.append(f"{name} {errors}, not below {tolerance}")
    torch.backends.cudnn.allow_tf32 = True
    constants = CONVENTIONS[_CONVENTION]
    theirs = nn.LocalResponseNorm(constants.size, constants.alpha * constants.size, constants.beta, constants.k)
    for shape in ((2, 96, 9, 9),) if trial.is_dry else _SHAPES:
        values = (
            torch.randn(shape, device=trial.device).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        )
        for name, layer in (("ours", LocalResponseNorm(_CONVENTION)), ("torch's", theirs)):

            def step(layer: nn.Module = layer, values: Tensor = values) -> None:
                leaf = values.detach().requires_grad_()
                layer(leaf).backward(values)

            with torch.autocast(trial.device.type, torch.bfloat16):
                trial.note(f"{shape} {name}: milliseconds forward and backward", gpu_milliseconds(step))
        trial.note(f"{shape}: GB that must move", 2 * _NUM_PASSES * values.numel() / 1e9)
    if wrong:
        raise Failed("; ".join(wrong))


def _both_ways(pair: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return LRN of the activations and their gradient, as float64 on the CPU."""
    activations, upstream = pair
    leaf = activations.clone().requires_grad_()
    result = LocalResponseNorm(_CONVENTION)(leaf)
    result.backward(upstream)
    assert leaf.grad is not None
    return result.detach().double().cpu(), leaf.grad.double().cpu()


def check_dropout(trial: Trial) -> None:
    """Compare dropout masks with the CPU's; note kernels and milliseconds of a layer beside torch's."""
    positions = torch.tensor(_POSITIONS)
    mask = functools.partial(keep_mask, num_units=_NUM_UNITS + 1, probability=0.5, seed=3, layer=5)
    num_different = int((mask(positions.to(trial.device)).cpu() != mask(positions)).sum())
    trial.note("units whose mask differs from the CPU's", num_different)
    for batch_size in (4,) if trial.is_dry else (128, 1024):
        layer = CountedDropout(0.5, seed=0, layer=2)
        values = torch.randn(batch_size, _NUM_UNITS, device=trial.device).to(torch.bfloat16)
        places = torch.arange(batch_size, device=trial.device)
        ours = functools.partial(layer, values, places)
        theirs = functools.partial(nn.functional.dropout, values, 0.5)
        with torch.profiler.profile() as profile:
            ours()
            synchronize()
        events = profile.key_averages()
        trial.note(
            f"batches of {batch_size}",
            {
                "milliseconds": 1000 * seconds_per_step(ours, trial.seconds / 4),
                "milliseconds on the device": gpu_milliseconds(ours),
                "milliseconds of torch's": 1000 * seconds_per_step(theirs, trial.seconds / 4),
                "kernels": sum(e.count for e in events if e.device_type == torch.autograd.DeviceType.CUDA),
            },
        )
    if num_different:
        raise Failed(f"the masks of {num_different} units differ from the CPU's")
