"""The Triton kernels of local response normalisation, on a GPU or in Triton's interpreter (`triton_device`)."""

from dataclasses import asdict

import pytest
import torch
from lrn_literal import literal_lrn
from torch import Tensor
from triton_device import DEVICE

from model import lrn, lrn_kernel
from model.lrn import LocalResponseNorm
from model.lrn_conventions import CONVENTIONS, Convention

lrn_triton = pytest.importorskip("model.lrn_triton", exc_type=ModuleNotFoundError)  # Triton is missing
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")]  # NumPy's

FLOAT32_ERROR = 1e-6
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # relative, of one rounding
SMALLEST = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2.0**-25}  # half the distance of subnormal numbers
SHAPES = [
    *((1, 1, 1, 1), (2, 3, 1, 1), (1, 5, 3, 1), (2, 7, 13, 1), (1, 96, 5, 7), (1, 97, 3, 2), (2, 256, 3, 1)),
    (1, 2100, 2, 1),  # a row has more vectors than a program usually takes
]


def activations_and_gradient(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 30.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    pair = scale * torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return tuple(channels_last(tensor.to(dtype)).to(DEVICE) for tensor in pair)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def assert_within(found: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """Assert that the arithmetic was in float32, and that the result was rounded once."""
    error = (found.double().cpu() - exact).abs()
    bound = FLOAT32_ERROR * magnitude + 1.001 * ROUNDING[found.dtype] * exact.abs() + SMALLEST[found.dtype]
    assert (error <= bound).all(), f"{(error / bound).max()} times what is allowed"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("convention", "dtype"),
    [
        *((convention, torch.float32) for convention in CONVENTIONS),
        *((convention, dtype) for convention in ("printed", "tensorflow") for dtype in (torch.bfloat16, torch.float16)),
    ],
)
def test_equal_to_the_formula_in_float64(convention: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    activations, gradient = activations_and_gradient(shape, dtype)
    constants = CONVENTIONS[convention]
    exact, exact_gradient, magnitude = literal_lrn(activations, gradient, constants)
    result = lrn_triton.normalize(activations, **asdict(constants))
    assert result.dtype == dtype and result.is_contiguous(memory_format=torch.channels_last)
    assert_within(result, exact, exact.abs())
    assert_within(lrn_triton.differentiate(activations, gradient, **asdict(constants)), exact_gradient, magnitude)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_equal_to_the_kernels_of_the_cpu(convention: str) -> None:
    """In bfloat16, only values within float32's error of the middle between two numbers are rounded otherwise."""
    activations, gradient = activations_and_gradient((3, 96, 7, 5), torch.bfloat16)
    constants = asdict(CONVENTIONS[convention])
    pairs = [
        (lrn_triton.normalize(activations, **constants), lrn_kernel.normalize(activations.cpu(), **constants)),
        (
            lrn_triton.differentiate(activations, gradient, **constants),
            lrn_kernel.differentiate(activations.cpu(), gradient.cpu(), **constants),
        ),
    ]
    for found, expected in pairs:
        assert (found.cpu() != expected).double().mean() < 0.005
        torch.testing.assert_close(found.cpu(), expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("convention", ["printed", "tensorflow"])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf"), 1e25])
def test_what_is_no_number_spreads_as_on_the_cpu(convention: str, odd: float) -> None:
    """1e25: its square is infinite in float32."""
    activations, gradient = activations_and_gradient((1, 24, 3, 2), torch.float32)
    constants = asdict(CONVENTIONS[convention])
    for of_activations in (True, False):
        pair = activations.clone(), gradient.clone()
        pair[0 if of_activations else 1][0, 9, 1, 1] = odd
        found = lrn_triton.normalize(pair[0], **constants), lrn_triton.differentiate(*pair, **constants)
        host = [tensor.cpu() for tensor in pair]
        expected = lrn_kernel.normalize(host[0], **constants), lrn_kernel.differentiate(*host, **constants)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (2, 0, 3, 3)], ids=str)
def test_without_values_nothing_happens(shape: tuple[int, ...]) -> None:
    empty = channels_last(torch.empty(shape, device=DEVICE))
    constants = asdict(CONVENTIONS["printed"])
    assert lrn_triton.normalize(empty, **constants).shape == empty.shape
    assert lrn_triton.differentiate(empty, empty, **constants).shape == empty.shape


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the kernels by `LocalResponseNorm`, which is told that Triton runs here."""
    names: list[str] = []
    for name in ("normalize", "differentiate"):
        operator = getattr(lrn_triton, name)
        monkeypatch.setattr(lrn_triton, name, lambda *a, _f=operator, _n=name, **k: names.append(_n) or _f(*a, **k))
    monkeypatch.setattr(lrn, "triton_runs_on", lambda device: device.type == DEVICE.type)
    return names


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_layer_uses_them_both_ways(calls: list[str], dtype: torch.dtype, autocast: bool) -> None:
    activations, gradient = activations_and_gradient((2, 32, 5, 3), dtype)
    leaf = activations.clone().requires_grad_()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
        output = LocalResponseNorm()(leaf)
    output.backward(gradient.contiguous())  # not channels-last
    assert calls == ["normalize", "differentiate"]
    constants = asdict(CONVENTIONS["printed"])
    assert torch.equal(output, lrn_triton.normalize(activations, **constants))
    assert torch.equal(leaf.grad, lrn_triton.differentiate(activations, gradient, **constants))
    assert leaf.grad.is_contiguous(memory_format=torch.channels_last)


def test_other_layouts_dtypes_and_exponents_use_torchs_operators(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONVENTIONS, "odd", Convention(size=3, alpha=0.01, beta=0.6, k=1.5))
    activations, gradient = activations_and_gradient((2, 16, 3, 2), torch.float32)
    for tensor, convention in (
        (activations.contiguous(), "printed"),
        (activations.double(), "printed"),
        (activations, "odd"),
    ):
        leaf = tensor.clone().requires_grad_()
        output = LocalResponseNorm(convention)(leaf)
        output.backward(gradient.to(tensor.dtype))
        exact, exact_gradient, _ = literal_lrn(tensor, gradient, CONVENTIONS[convention])
        torch.testing.assert_close(output.double().cpu(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(leaf.grad.double().cpu(), exact_gradient, rtol=1e-5, atol=1e-5)
    assert not calls


def test_torch_compile_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lrn, "triton_runs_on", lambda device: True)
    activations, gradient = activations_and_gradient((2, 32, 5, 3), torch.bfloat16)
    layer = LocalResponseNorm()
    results = []
    for function in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        leaf = activations.clone().requires_grad_()
        output = function(leaf)
        output.backward(gradient)
        results.append((output.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
