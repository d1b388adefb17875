"""The Triton kernel of dropout, on a GPU or in Triton's interpreter (`triton_device`)."""

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE

from model import dropout
from model.dropout import CountedDropout, keep_mask

dropout_triton = pytest.importorskip("model.dropout_triton", exc_type=ModuleNotFoundError)  # Triton is missing
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")]  # NumPy's

POSITIONS = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**40 + 7, 2**62 + 3])  # at the limits of 32-bit words
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROBABILITIES = (1e-6, 2**-16, 0.1, 0.25, 0.5, 0.7, 0.999, 1 - 2**-16)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calls of the kernel by `CountedDropout`, which is told that Triton runs on this device."""
    calls: list[int] = []
    operator = dropout_triton.drop
    monkeypatch.setattr(dropout_triton, "drop", lambda *a: calls.append(1) or operator(*a))
    monkeypatch.setattr(dropout, "triton_runs_on", lambda device: device.type == DEVICE.type)
    return calls


def activations(num_units: int, dtype: torch.dtype) -> Tensor:
    """Random numbers, and what is none."""
    values = torch.randn(len(POSITIONS), num_units, generator=torch.Generator().manual_seed(2)).to(dtype)
    odd = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, torch.finfo(dtype).tiny / 4], dtype=dtype)
    values.view(-1)[: len(odd)] = odd[: values.numel()]
    return values


def by_torchs_operators(layer: CountedDropout, values: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer's output and gradient on the CPU, where no kernel is used."""
    leaf = values.detach().cpu().requires_grad_()
    survival = 1 - int(layer.probability * 2**16) / 2**16
    settings = {"probability": layer.probability, "seed": layer.seed, "layer": layer.layer}
    kept = keep_mask(POSITIONS, leaf[0].numel(), **settings).view_as(leaf).to(leaf.dtype)
    output = leaf * kept.mul_((survival if layer.scaling == "test" else 1.0) / survival)
    output.backward(upstream.cpu())
    return output.detach(), leaf.grad


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Assert equal bits, but any NaN equals any other."""
    assert found.dtype == expected.dtype
    found = found.detach().cpu()
    assert torch.equal(found.isnan(), expected.isnan())
    bits = [tensor.nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf) for tensor in (found, expected)]
    integers = torch.int32 if found.dtype == torch.float32 else torch.int16
    assert torch.equal(bits[0].view(integers), bits[1].view(integers))


@pytest.mark.parametrize("num_units", [1, 13, 1032])
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_as_torchs_operators(calls: list[int], dtype: torch.dtype, num_units: int) -> None:
    values, upstream = activations(num_units, dtype), activations(num_units, dtype).flip(0)
    for place, probability in enumerate(PROBABILITIES):
        seed = (0, -1, 2**63 + 5, 3, 2**32, 2**64 - 1, -(2**63), 10**30)[place]
        layer = CountedDropout(probability, seed=seed, layer=place, scaling=("training", "test")[place % 2])
        leaf = values.clone().to(DEVICE).requires_grad_()
        output = layer(leaf, POSITIONS.to(DEVICE))
        output.backward(upstream.to(DEVICE))
        expected = by_torchs_operators(layer, values, upstream)
        assert_same_bits(output, expected[0])
        assert_same_bits(leaf.grad, expected[1])
    assert len(calls) == 2 * len(PROBABILITIES)  # forward and backward


@pytest.mark.parametrize(("first", "end"), [(0, 1024), (8, 1032), (1024, 2100)])
def test_a_slice_of_the_units_gets_its_columns(calls: list[int], first: int, end: int) -> None:
    values = activations(2100, torch.float32)
    layer = CountedDropout(0.5, seed=2**63 + 5, layer=2)
    whole = by_torchs_operators(layer, values, values)
    leaf = values[:, first:end].contiguous().to(DEVICE).requires_grad_()
    output = CountedDropout(0.5, seed=2**63 + 5, layer=2, first_unit=first)(leaf, POSITIONS.to(DEVICE))
    output.backward(leaf.detach())
    assert_same_bits(output, whole[0][:, first:end])
    assert_same_bits(leaf.grad, whole[1][:, first:end])
    assert calls


def test_autocast_and_further_dimensions_change_nothing(calls: list[int]) -> None:
    values = activations(60, torch.float32).view(len(POSITIONS), 3, 4, 5)
    layer = CountedDropout(0.5, seed=3, layer=2)
    leaf = values.clone().to(DEVICE).requires_grad_()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        output = layer(leaf, POSITIONS.to(DEVICE))
    upstream = torch.randn(values.shape).transpose(1, 3).contiguous().transpose(1, 3)
    output.backward(upstream.to(DEVICE))  # not contiguous
    expected = by_torchs_operators(layer, values, upstream)
    assert_same_bits(output, expected[0])
    assert_same_bits(leaf.grad, expected[1])
    assert calls


def test_other_layouts_and_dtypes_use_torchs_operators(calls: list[int]) -> None:
    layer = CountedDropout(0.5, seed=3, layer=2)
    values = torch.randn(len(POSITIONS), 6, 2, 2)
    for tensor in (values.double(), values.contiguous(memory_format=torch.channels_last)):
        output = layer(tensor.to(DEVICE), POSITIONS.to(DEVICE))
        assert torch.equal(output.cpu(), by_torchs_operators(layer, tensor, tensor)[0])
    assert not calls


def test_an_empty_batch_stays_empty(calls: list[int]) -> None:
    output = CountedDropout(0.5, seed=3, layer=2)(torch.empty(0, 8, device=DEVICE), POSITIONS[:0].to(DEVICE))
    assert output.shape == (0, 8)


def test_torch_compile_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "triton_runs_on", lambda device: True)
    layer = CountedDropout(0.5, seed=3, layer=2)
    values = torch.randn(len(POSITIONS), 20).bfloat16()
    leaf = values.to(DEVICE).requires_grad_()
    output = torch.compile(layer, backend="aot_eager", fullgraph=True)(leaf, POSITIONS.to(DEVICE))
    output.backward(output.detach())
    expected = by_torchs_operators(layer, values, output.detach())
    assert_same_bits(output, expected[0])
    assert_same_bits(leaf.grad, expected[1])
