"""Dense layers that are cut against the whole ones: outputs, gradients, masks, and bfloat16."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from worker_group import run_group

from cluster.exchange.cut import Cut
from cluster.exchange.cut_layers import CutDropout, CutLinear, WholeBatch
from model.dropout import CountedDropout

SIZES = {1: (7,), 2: (3, 4), 3: (4, 1, 2), 4: (1, 3, 1, 2)}  # samples of each worker
POSITIONS = torch.tensor([5, 2**33, 0, 7, 2**40 + 1, 12, 3])


def _whole(dtype: torch.dtype, scaling: str, bias: bool) -> nn.Sequential:
    torch.manual_seed(3)
    layers = nn.Sequential(
        nn.Linear(50, 44, bias=bias),
        nn.ReLU(inplace=True),
        CountedDropout(0.5, seed=4, layer=2, scaling=scaling),
        nn.Linear(44, 35),
        nn.Tanh(),
        CountedDropout(0.25, seed=4, layer=5, scaling=scaling),
        nn.Linear(35, 6, bias=bias),
    )
    return layers.to(dtype)


def _cut(whole: nn.Sequential, batch: WholeBatch) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, layer in enumerate(whole):
        if isinstance(layer, nn.Linear):
            latest = CutLinear(layer, batch, is_first=index == 0, is_last=index == len(whole) - 1)
            layers.append(latest)
        elif isinstance(layer, CountedDropout):
            layers.append(CutDropout(layer, batch, latest.outputs.first_of(dist.get_rank())))
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def _run(layers: nn.Sequential, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        values = layer(values, positions) if isinstance(layer, CountedDropout) else layer(values)
    return values


def _assert_near(mine: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert mine.shape == expected.shape and mine.dtype == expected.dtype
    assert float((mine - expected).abs().max()) <= tolerance * float(expected.abs().max())


def passes() -> None:
    _check_passes(torch.float64, is_bfloat16=False, scaling="training", bias=True)
    _check_passes(torch.float64, is_bfloat16=False, scaling="test", bias=False)
    _check_passes(torch.float32, is_bfloat16=True, scaling="training", bias=True)


def _check_passes(dtype: torch.dtype, *, is_bfloat16: bool, scaling: str, bias: bool) -> None:
    rank = dist.get_rank()
    samples = Cut(0, SIZES[dist.get_world_size()])
    values = torch.randn(7, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    slopes = torch.randn(7, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    whole, batch = _whole(dtype, scaling, bias), WholeBatch()
    cut = _cut(_whole(dtype, scaling, bias), batch)
    own, expected = samples.part(values, rank).requires_grad_(), values.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16) if is_bfloat16 else nullcontext():
        with batch.passing(samples, samples.part(POSITIONS, rank)):
            logits = _run(cut, own, samples.part(POSITIONS, rank))
        whole_logits = _run(whole, expected, POSITIONS)
    assert float(whole_logits.detach().abs().max()) > 0.1
    tolerance = 0.04 if is_bfloat16 else 1e-13
    _assert_near(logits.detach(), samples.part(whole_logits, rank), tolerance)
    logits.backward(samples.part(slopes, rank).to(logits.dtype))
    whole_logits.backward(slopes.to(whole_logits.dtype))
    _assert_near(own.grad, samples.part(expected.grad, rank), tolerance)
    for layer, reference in zip(cut, whole, strict=True):
        if not isinstance(layer, CutLinear):
            continue
        assert list(layer.state_dict()) == list(reference.state_dict())
        for name, parameter in layer.named_parameters():
            gradient = reference.get_parameter(name).grad
            if name in layer.cuts:
                _assert_near(parameter.grad, layer.cuts[name].part(gradient, rank), tolerance)
            else:  # the last bias: workers' gradients are summed elsewhere
                dist.all_reduce(parameter.grad)
                _assert_near(parameter.grad, gradient, tolerance)
    _work_alone(cut, whole)


def _work_alone(cut: nn.Sequential, whole: nn.Sequential) -> None:
    """Evaluate by the whole weights: each worker as many samples as it likes."""
    cut.eval()
    whole.eval()
    values = torch.randn(dist.get_rank() + 1, 50).to(whole[0].weight.dtype)
    linear = [layer for layer in cut if isinstance(layer, CutLinear)]
    with linear[0].gathered(), linear[1].gathered(), linear[2].gathered(), torch.no_grad():
        if dist.get_rank() == 0:
            assert torch.equal(cut(values), whole(values))
        assert torch.equal(cut(values), whole(values))
    with pytest.raises(RuntimeError, match="outside of the exchange's module"):
        cut(values)


@pytest.mark.parametrize("world_size", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4))])
def test_outputs_and_gradients_are_those_of_whole_layers(world_size):
    run_group(world_size, __file__, "passes")


def bfloat16_sums() -> None:
    """Of 2^9 and two ones, bfloat16 would lose each one alone, but not their float32 sum of 514 and the bias."""
    layer = nn.Linear(24, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0], layer.weight[0, 8], layer.weight[0, 16] = 512, 1, 1
        layer.bias.fill_(2.0)
    batch, samples = WholeBatch(), Cut(0, (1, 1, 1))
    cut = CutLinear(layer, batch, is_first=True, is_last=True)
    with torch.autocast("cpu", torch.bfloat16), batch.passing(samples, None):
        outputs = cut(torch.ones(1, 24))
    assert outputs.dtype == torch.bfloat16 and outputs.item() == 516


def test_partial_sums_in_bfloat16_are_added_in_float32():
    run_group(3, __file__, "bfloat16_sums")
