"""Kernels of Triton without a GPU: in its interpreter, or compiled for cards that are not there.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter needs a process of its own.

    python tests/helpers/triton_process.py lrn|dropout      compares kernels with torch's operators
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

CARDS = (80, 90, 100)  # compute capabilities times 10: A100, H100, B200


def run(*arguments: str, interprets: bool = True) -> str:
    """Run Python in a process, and return its standard output."""
    environment = os.environ | {"TRITON_INTERPRET": "1" if interprets else "0"}
    answer = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def compile_for(card: int, kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any]) -> dict[str, int]:
    """Compile a kernel; return counts of what stands in its code and what ptxas says of it.

    Args:
        card: Compute capability times 10.
        kernel: Function decorated by `triton.jit`.
        types: Type of each argument by name, as Triton writes it; more names are ignored.
        constants: Value of each constant by name.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    # As at a launch: memory is aligned, and numbers of units and channels are multiples of 16.
    aligned = [name for name in names if signature[name].startswith("*") or name == "num_units"]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
    ptx = triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 4}).asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [
            get_ptxas(card).path,
            "-v",
            f"--gpu-name={sm_arch_from_capability(card)}",
            file.name,
            "-o",
            os.devnull,
        ]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    patterns = {
        "vector loads": r"ld\.global\.v4",
        "vector stores": r"st\.global\.v4",
        "other loads": r"ld\.global\.(?!v4)",
        "barriers": r"bar\.sync",
        "shared": r"\.shared\.",
        "shuffles": r"shfl\.",
        "fused": r"fma\.rn\.f32",
        "divisions": r"\bdiv\.",
        "rounded to nearest": r"cvt\.rn\.bf16x2\.f32",
    }
    counts = {name: len(re.findall(pattern, ptx)) for name, pattern in patterns.items()}
    (counts["registers"],) = map(int, re.findall(r"Used (\d+) registers", told))
    counts["spilled bytes"] = sum(map(int, re.findall(r"(\d+) bytes spill", told)))
    return counts


def round_like_a_card() -> None:
    """Let the interpreter round float32 to the nearest bfloat16, ties to even; it would cut off the bits."""
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(values: Any, before: Any, after: Any, rounding: Any) -> Any:
        if (before, after) != (tl.float32, tl.bfloat16):
            return convert(values, before, after, rounding)
        return torch.from_numpy(values.copy()).bfloat16().view(torch.uint16).numpy()

    interpreter._convert_float = converted


def compare_lrn() -> None:
    """Compare both kernels with float64, and with the kernels of the CPU, in every convention."""
    from dataclasses import asdict

    import torch

    from model import lrn_kernel, lrn_triton
    from model.lrn import LocalResponseNorm
    from model.lrn_conventions import CONVENTIONS, Convention

    CONVENTIONS["odd"] = Convention(size=3, alpha=0.01, beta=0.6, k=1.5)
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (2, 96, 3, 5),
        (1, 1, 1, 1),
        (3, 3, 2, 2),
        (1, 5, 1, 1),
        (2, 7, 5, 13),
        (1, 8, 1, 131),
        (1, 97, 3, 3),
        (1, 256, 2, 3),
    )
    tolerances = {torch.float32: 4e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}
    for name, convention in CONVENTIONS.items():
        for shape in shapes:
            for dtype, tolerance in tolerances.items():
                values = (30 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
                upstream = torch.randn(shape, generator=generator).to(dtype)
                values, upstream = (t.contiguous(memory_format=torch.channels_last) for t in (values, upstream))
                found = (
                    lrn_triton.normalize(values, **asdict(convention)),
                    lrn_triton.differentiate(values, upstream, **asdict(convention)),
                )
                leaf = values.double().requires_grad_()
                result = LocalResponseNorm(name)(leaf)
                result.backward(upstream.double())
                # Where the two terms of the derivative cancel, their size is the measure.
                direct = upstream.double() * result.detach() / values.double()
                for tensor, expected, scale in zip(
                    found, (result.detach(), leaf.grad), (result.detach(), direct), strict=True
                ):
                    assert tensor.dtype == dtype and tensor.is_contiguous(memory_format=torch.channels_last)
                    error = ((tensor.double() - expected).norm() / scale.norm()).item()
                    assert error < tolerance, (name, shape, dtype, error)
                if dtype == torch.float16:
                    continue  # the CPU has no kernel for it
                peers = (
                    lrn_kernel.normalize(values, **asdict(convention)),
                    lrn_kernel.differentiate(values, upstream, **asdict(convention)),
                )
                for tensor, peer in zip(found, peers, strict=True):
                    torch.testing.assert_close(tensor, peer, rtol=2 * tolerance, atol=2 * tolerance)
    for odd in (float("nan"), float("inf"), 1e30):
        values = torch.full((1, 16, 1, 2), 2.0).contiguous(memory_format=torch.channels_last)
        values[0, 8, 0, 1] = odd
        ours, theirs = (k.normalize(values, **asdict(CONVENTIONS["printed"])) for k in (lrn_triton, lrn_kernel))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert ours[0, :, 0, 0].isfinite().all()


def compare_dropout() -> None:
    """Compare output and gradient of the layer with and without the kernel, bit by bit."""
    import itertools

    import torch

    from model import dropout
    from model.dropout import CountedDropout

    positions = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**40 + 7])
    generator = torch.Generator().manual_seed(0)
    cases = itertools.product(
        (torch.float32, torch.bfloat16, torch.float16), (0.5, 1e-6, 0.1, 0.999), (1, 7, 8, 1030), ("training", "test")
    )
    seeds = itertools.cycle([0, 1, 3, 2**31, 2**63 - 1, -1, 2**64 + 5])
    for number, (dtype, probability, num_units, scaling) in enumerate(cases):
        layer = CountedDropout(probability, seed=next(seeds), layer=number % 3, scaling=scaling)
        values = torch.randn(len(positions), num_units, generator=generator).to(dtype)
        values[0, 0] = float("inf") if number % 2 else float("nan")
        upstream = torch.randn(values.shape, generator=generator).to(dtype)
        found = []
        for fits in (False, True):
            dropout._fits_kernel = lambda _, fits=fits: fits
            leaf = values.clone().requires_grad_()
            result = layer(leaf, positions)
            result.backward(upstream)
            found.append([result.detach(), leaf.grad])
        for expected, tensor in zip(*found, strict=True):
            assert tensor.dtype == dtype
            assert torch.equal(tensor.isnan(), expected.isnan())
            bits = [
                t.nan_to_num(0).view(torch.int32 if dtype == torch.float32 else torch.int16) for t in (tensor, expected)
            ]
            assert torch.equal(*bits), (dtype, probability, num_units, scaling)


if __name__ == "__main__":
    round_like_a_card()
    {"lrn": compare_lrn, "dropout": compare_dropout}[sys.argv[1]]()
