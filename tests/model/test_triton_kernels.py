"""The kernels for GPUs: in Triton's interpreter, compiled for cards that are not there, and on a card."""

import sys
import warnings

import pytest
import torch
import triton_process
from triton_process import CARDS, compile_for

from model import batch_norm, dropout, lrn, triton_support
from model.batch_norm import GhostBatchNorm
from model.dropout import CountedDropout
from model.lrn import LocalResponseNorm

GPU = torch.device("cuda", 0)
TYPES = {
    "inputs": "*bf16", "outputs": "*bf16", "gradients": "*bf16", "positions": "*i64", "num_rows": "i32",
    "num_units": "i32", "alpha": "fp32", "k": "fp32", "threshold": "i32", "scale": "fp32", "seed": "i64",
    "layer": "i32",
}  # fmt: skip


@pytest.mark.parametrize("kernels", ["lrn", "dropout"])
def test_the_kernels_compute_what_torchs_operators_do(kernels: str) -> None:
    triton_process.run(triton_process.__file__, kernels)


@pytest.mark.parametrize("card", CARDS)
def test_normalisation_takes_registers_alone_and_whole_vectors(card: int) -> None:
    from model.lrn_triton import _backward, _forward

    for kernel, num_loads in ((_forward, 1), (_backward, 2)):
        for channels, half in ((96, 2), (256, 2), (256, 5)):
            constants = {"CHANNELS": channels, "HALF": half, "BETA": 0.75, "ROWS": 128}
            found = compile_for(card, kernel, TYPES, constants)
            assert found["vector loads"] == num_loads and found["vector stores"] == 1, found
            assert found["rounded to nearest"] == 4, found  # eight values, two at a time
            assert [found[name] for name in ("other loads", "barriers", "shared", "shuffles", "spilled bytes")] == [
                0
            ] * 5
            assert found["registers"] <= 128  # so that 16 warps fit on a multiprocessor


@pytest.mark.parametrize("card", CARDS)
def test_dropout_takes_registers_alone_and_whole_vectors(card: int) -> None:
    from model.dropout_triton import _drop

    found = compile_for(card, _drop, TYPES, {"BLOCKS": 128})
    assert found["vector loads"] == found["vector stores"] == 1 and found["rounded to nearest"] == 4, found
    assert [found[name] for name in ("barriers", "shared", "shuffles", "spilled bytes")] == [0] * 4


@pytest.mark.parametrize(
    ("found", "cause"), [(None, "it is not installed"), (object(), "RuntimeError|AssertionError|FakeError")]
)
def test_without_triton_a_warning_says_so_once_and_torch_computes(monkeypatch, found, cause) -> None:
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: found)
    triton_support._works_on.cache_clear()
    with pytest.warns(UserWarning, match=rf"Triton can't be used \(({cause}).*; response normalisation .* C compiler"):
        assert not triton_support.has_kernels(GPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not triton_support.has_kernels(GPU)  # the second time in silence
        assert not triton_support.has_kernels(torch.device("cpu"))
    triton_support._works_on.cache_clear()


def test_a_cpu_loads_no_triton() -> None:
    triton_process.run(
        "-c",
        "import sys, torch; from model.lrn import LocalResponseNorm; from model.dropout import CountedDropout\n"
        "LocalResponseNorm()(CountedDropout(0.5, seed=0, layer=0)(torch.ones(2, 8, 3, 3), torch.arange(2)))\n"
        "assert 'triton.language' not in sys.modules",
        interprets=False,
    )


@pytest.mark.parametrize("num_samples", [3, 8, 12, 15])
def test_groups_are_normalised_at_once_as_one_by_one(num_samples: int) -> None:
    generator = torch.Generator().manual_seed(3)
    values = 2 + 3 * torch.randn(num_samples, 5, 4, 3, generator=generator)
    values, upstream = (
        values.contiguous(memory_format=torch.channels_last),
        torch.randn(values.shape, generator=generator),
    )
    found = []
    for method in (GhostBatchNorm._normalise_one_by_one, GhostBatchNorm._normalise_at_once):
        layer, leaf = GhostBatchNorm(5, 4), values.clone().requires_grad_()
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 1.5, 5))
            layer.bias.copy_(torch.linspace(-1, 1, 5))
        result = method(layer, leaf)
        result.backward(upstream)
        assert result.is_contiguous(memory_format=torch.channels_last)
        batch_norm.update_running_statistics(layer, lambda total: total)
        assert not layer.pending
        gradients = [leaf.grad, layer.weight.grad, layer.bias.grad]
        found.append([result.detach(), *gradients, layer.running_mean, layer.running_variance])
    for expected, tensor in zip(*found, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_card_normalisation_equals_the_cpus(dtype: torch.dtype, compiled: bool) -> None:
    assert triton_support.has_kernels(GPU)
    generator = torch.Generator().manual_seed(0)
    for convention in lrn.CONVENTIONS:
        for shape in ((4, 96, 13, 13), (2, 256, 27, 27), (3, 5, 7, 1)):
            values = (30 * torch.randn(shape, generator=generator)).to(dtype)
            upstream = torch.randn(shape, generator=generator).to(dtype)
            found = []
            for device in ("cpu", GPU):
                layer = LocalResponseNorm(convention)
                run = torch.compile(layer) if compiled and device == GPU else layer
                leaf = values.to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
                result = run(leaf)
                result.backward(upstream.to(device))
                found.append([result.detach().float().cpu(), leaf.grad.float().cpu()])
            tolerance = 1e-6 if dtype == torch.float32 else 1e-2
            for expected, tensor in zip(*found, strict=True):
                torch.testing.assert_close(tensor, expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_card_dropout_has_the_cpus_bits(dtype: torch.dtype) -> None:
    assert triton_support.has_kernels(GPU)
    positions, values = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**40 + 7]), torch.randn(5, 4097).to(dtype)
    layer, found = CountedDropout(0.3, seed=7, layer=2), []
    for device in ("cpu", GPU):
        leaf = values.to(device).requires_grad_()
        result = layer(leaf, positions.to(device))
        result.backward(result.detach())
        found.append([result.detach().cpu(), leaf.grad.cpu()])
    assert dropout._fits_kernel(values.to(GPU))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.gpu
def test_on_a_card_neither_kernel_waits() -> None:
    layers = LocalResponseNorm(), CountedDropout(0.5, seed=1, layer=0)
    values = torch.randn(8, 96, 5, 5, device=GPU).contiguous(memory_format=torch.channels_last)
    units, positions = torch.randn(8, 4096, device=GPU), torch.arange(8, device=GPU)

    def step() -> None:
        leaf, other = values.requires_grad_(), units.requires_grad_()
        layers[0](leaf).sum().backward()
        layers[1](other, positions).sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sys.modules["model.lrn_triton"] and sys.modules["model.dropout_triton"]
