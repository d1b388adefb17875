import math

import pytest
import torch
from torch import nn

from model.initialization import INITIALIZATIONS, initialize

WEIGHTED = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def small_net() -> nn.Module:
    """Five convolutions, two of them grouped, and three dense layers, big enough for their moments to be measured."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5),
        nn.Conv2d(32, 64, 5, groups=2),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, groups=2),
        nn.Conv2d(64, 64, 3),
        nn.Linear(64, 256),
        nn.Linear(256, 256),
        nn.Linear(256, 50),
    )


def initialized(name: str, seed: int = 0) -> dict[str, nn.Conv2d | nn.Linear]:
    net = small_net()
    initialize(net, name, seed=seed)
    return dict(zip(WEIGHTED, net, strict=True))


@pytest.mark.parametrize(
    ("name", "positive", "deviations"),
    [
        ("paper", 1.0, dict.fromkeys(WEIGHTED, 0.01)),
        ("caffe", 0.1, {**dict.fromkeys(WEIGHTED, 0.01), "fc6": 0.005, "fc7": 0.005}),
    ],
)
def test_gaussian_weights_and_positive_biases(name: str, positive: float, deviations: dict[str, float]) -> None:
    for layer_name, layer in initialized(name).items():
        lifted = layer_name in {"conv2", "conv4", "conv5", "fc6", "fc7"}
        assert layer.bias.unique().tolist() == [pytest.approx(positive if lifted else 0.0)]
        weights = layer.weight.detach().double()
        tolerance = 5 / math.sqrt(weights.numel())  # five deviations of a mean, in units of the weights' deviation
        assert abs(weights.mean()) < tolerance * deviations[layer_name]
        assert weights.std() == pytest.approx(deviations[layer_name], rel=tolerance)
        assert weights.abs().max() > 3 * deviations[layer_name]


def test_kaiming_keeps_the_energy_of_rectified_inputs() -> None:
    fan_in = {"conv1": 75, "conv2": 400, "conv3": 576, "conv4": 288, "conv5": 576, "fc6": 64, "fc7": 256, "fc8": 256}
    for layer_name, layer in initialized("kaiming").items():
        assert not layer.bias.any()
        expected = math.sqrt(2 / fan_in[layer_name])
        assert layer.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(layer.weight.numel()))


def test_torch_is_what_pytorch_does_by_itself() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        expected = small_net()
    net = small_net()
    initialize(net, "torch", seed=9)
    torch.testing.assert_close(net.state_dict(), expected.state_dict())


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_the_seed_alone_decides(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = initialized(name, seed=1)
        torch.manual_seed(2)
        again, other = initialized(name, seed=1), initialized(name, seed=2)
    for layer_name in WEIGHTED:
        assert torch.equal(first[layer_name].weight, again[layer_name].weight)
        assert torch.equal(first[layer_name].bias, again[layer_name].bias)
        assert not torch.equal(first[layer_name].weight, other[layer_name].weight)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_the_global_generator_does_not_move(name: str) -> None:
    net = small_net()
    before = torch.random.get_rng_state()
    initialize(net, name, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(ValueError, match="initialization='xavier': must be one of paper, caffe, torch, kaiming"):
        initialize(small_net(), "xavier", seed=0)
