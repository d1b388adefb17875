import numpy as np
import pytest
import torch

from model import lrn, lrn_kernel
from model.lrn import LocalResponseNorm


def literal_formula(activations: np.ndarray, *, k: float, n: int, alpha: float, beta: float) -> np.ndarray:
    """Section 3.3 of the paper, one pixel and one channel at a time."""
    num_channels = activations.shape[1]
    output = np.empty_like(activations)
    for i in range(num_channels):
        window = activations[:, max(0, i - n // 2) : min(num_channels - 1, i + n // 2) + 1]
        output[:, i] = activations[:, i] / (k + alpha * (window**2).sum(axis=1)) ** beta
    return output


def random_activations(*shape: int, scale: float = 30.0) -> torch.Tensor:
    # Large enough for alpha times the sum of squares to weigh as much as k.
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


both_layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


@both_layouts
@pytest.mark.parametrize("num_channels", [1, 3, 5, 16, 96])
def test_conventions_equal_the_literal_formula(num_channels: int, layout: torch.memory_format) -> None:
    activations = random_activations(3, num_channels, 4, 5).to(memory_format=layout)
    printed = literal_formula(activations.numpy(), k=2, n=5, alpha=1e-4, beta=0.75)
    caffe = literal_formula(activations.numpy(), k=1, n=5, alpha=1e-4 / 5, beta=0.75)
    np.testing.assert_allclose(LocalResponseNorm("printed")(activations), printed, rtol=1e-12)
    np.testing.assert_allclose(LocalResponseNorm("caffe")(activations), caffe, rtol=1e-12)
    pytorch = literal_formula(activations.numpy(), k=2, n=5, alpha=1e-4 / 5, beta=0.75)
    np.testing.assert_allclose(LocalResponseNorm("pytorch")(activations), pytorch, rtol=1e-12)
    tensorflow = literal_formula(activations.numpy(), k=1, n=11, alpha=1, beta=0.5)
    np.testing.assert_allclose(LocalResponseNorm("tensorflow")(activations), tensorflow, rtol=1e-12)


def test_equals_torch() -> None:
    activations = random_activations(2, 96, 5, 5).float()
    peer = torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)
    torch.testing.assert_close(LocalResponseNorm("printed")(activations), peer(activations), rtol=1e-6, atol=1e-6)
    peer = torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)
    torch.testing.assert_close(LocalResponseNorm("caffe")(activations), peer(activations), rtol=1e-6, atol=1e-6)
    peer = torch.nn.LocalResponseNorm(5, k=2)
    torch.testing.assert_close(LocalResponseNorm("pytorch")(activations), peer(activations), rtol=1e-6, atol=1e-6)


@both_layouts
@pytest.mark.parametrize("convention", lrn.CONVENTIONS)
def test_backward_is_the_derivative(convention: str, layout: torch.memory_format) -> None:
    activations = random_activations(2, 7, 3, 2).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(LocalResponseNorm(convention), activations)


@both_layouts
def test_other_exponents_use_a_power(monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format) -> None:
    monkeypatch.setitem(lrn.CONVENTIONS, "odd", lrn.Convention(size=3, alpha=0.01, beta=0.6, k=1.5))
    activations = random_activations(2, 6, 3, 2).to(memory_format=layout).requires_grad_()
    expected = literal_formula(activations.detach().numpy(), k=1.5, n=3, alpha=0.01, beta=0.6)
    np.testing.assert_allclose(LocalResponseNorm("odd")(activations).detach(), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(LocalResponseNorm("odd"), activations)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    activations = random_activations(7, 8, 6, 6)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = activations.clone().requires_grad_()
        output = LocalResponseNorm()(leaf)
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
        return output, gradient

    whole = run()
    for num_samples in (1, 3):
        monkeypatch.setattr(lrn, "_CPU_BLOCK_BYTES", num_samples * 4 * 8 * 6 * 6)
        torch.testing.assert_close(run(), whole, rtol=1e-13, atol=0)


def test_memory_format_and_dtype_are_kept() -> None:
    activations = random_activations(2, 16, 5, 5).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    output = LocalResponseNorm()(activations)
    output.sum().backward()
    for result in (output, activations.grad):
        assert result.dtype == torch.bfloat16
        assert result.is_contiguous(memory_format=torch.channels_last)


@both_layouts
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_rounds_only_the_result(autocast: bool, layout: torch.memory_format) -> None:
    rounded = random_activations(2, 32, 5, 5).bfloat16().to(memory_format=layout)
    leaf = rounded.clone().requires_grad_()
    exact_leaf = rounded.double().requires_grad_()
    upstream = random_activations(2, 32, 5, 5, scale=1.0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = LocalResponseNorm()(leaf)
        output.backward(upstream)
    exact = LocalResponseNorm()(exact_leaf)
    exact.backward(upstream.double())
    half_ulp = 2.0**-8  # bfloat16 has 8 significant bits; the relative error of one rounding is at most 2^-9
    torch.testing.assert_close(output.double(), exact, rtol=half_ulp, atol=0)
    torch.testing.assert_close(leaf.grad.double(), exact_leaf.grad, rtol=half_ulp, atol=1e-6)


@both_layouts
def test_what_is_no_number_is_kept(layout: torch.memory_format) -> None:
    activations = random_activations(1, 32, 2, 2).bfloat16().to(memory_format=layout)
    activations[0, 7, 0, 0] = torch.nan
    missing = LocalResponseNorm()(activations).isnan()
    assert missing[0, 5:10, 0, 0].all()  # its window's
    assert not missing.flatten(2)[..., 1:].any()  # no other pixel's


def test_the_kernel_rounds_as_torch_does() -> None:
    exact = random_activations(4, 32, 9, 9).float().to(memory_format=torch.channels_last)
    rounded = exact.bfloat16()
    torch.testing.assert_close(
        LocalResponseNorm()(rounded), LocalResponseNorm()(rounded.float()).bfloat16(), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    activations = random_activations(3, 24, 7, 5).to(dtype).to(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        leaf = activations.clone().requires_grad_()
        output = LocalResponseNorm()(leaf)
        results.append([output, *torch.autograd.grad(output.sum(), leaf)])
    torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_without_a_folder_for_what_is_compiled_it_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert lrn_kernel._compiled(lambda number: number + 1)(2) == 3


@pytest.mark.parametrize("num_channels", [1, 4, 16])
@pytest.mark.parametrize("size", [3, 5, 11])
def test_pooling_sums_the_windows_too(size: int, num_channels: int) -> None:
    values = random_activations(2, num_channels, 3, 4)
    expected = lrn._sum_neighbours(values, size)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = lrn._pool_neighbours(values.to(memory_format=layout), size)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_an_empty_batch_stays_empty() -> None:
    activations = torch.empty(0, 8, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    output = LocalResponseNorm()(activations)
    output.sum().backward()
    assert output.shape == activations.grad.shape == (0, 8, 3, 3)


def test_autocast_leaves_float32_alone() -> None:
    activations = random_activations(2, 32, 5, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = LocalResponseNorm()(activations)
    torch.testing.assert_close(output, LocalResponseNorm()(activations), rtol=0, atol=0)


def test_only_the_input_is_kept_for_backward() -> None:
    kept: list[torch.Tensor] = []
    activations = random_activations(2, 8, 4, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        LocalResponseNorm()(activations)
    assert [tensor.data_ptr() for tensor in kept] == [activations.data_ptr()]


def test_an_unknown_convention_is_named() -> None:
    with pytest.raises(ValueError, match="convention='onnx': must be one of printed, caffe, pytorch, tensorflow"):
        LocalResponseNorm("onnx")
